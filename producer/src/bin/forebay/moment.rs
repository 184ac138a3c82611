//! Times and durations as people write and read them.
//! In: `5m`, `2026-12-01T08:00:00Z`. Out: durations and points in time, and the way back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nobody means more, and arithmetic with it cannot overflow.
const LONGEST: Duration = Duration::from_secs(1_000 * 365 * 24 * 3600);

/// When a job is no longer worth running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expiry {
    After(Duration),
    At(SystemTime),
}

/// Parses `30s`, `5m`, `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => Err("it is longer than a thousand years".to_owned()),
        Err(why) => Err(format!("{why}; write it like 30s, 5m or 1h30m")),
    }
}

/// Parses a duration that is not zero.
pub(crate) fn wait(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(duration) }
}

/// Parses `2026-12-01T08:00:00Z` or `2026-12-01T08:00:00+01:00` (RFC 3339).
pub(crate) fn date(text: &str) -> Result<SystemTime, String> {
    const LIKE: &str = "write it like 2026-12-01T08:00:00Z or 2026-12-01T09:00:00+01:00";
    let zone = text.char_indices().skip("2026-12-01T".len()).find(|(_, c)| "Zz+-".contains(*c));
    // Without a zone nobody knows which hour is meant.
    let Some((at, _)) = zone else {
        return Err(format!("it has no time zone; {LIKE}"));
    };
    let (local, zone) = text.split_at(at);
    let parsed = humantime::parse_rfc3339(&format!("{local}Z"));
    let local = parsed.map_err(|why| format!("{why}; {LIKE}"))?;
    let utc = match zone {
        "Z" | "z" => Some(local),
        zone => offset(zone).and_then(|(east, offset)| {
            if east { local.checked_sub(offset) } else { local.checked_add(offset) }
        }),
    };
    utc.ok_or_else(|| format!("`{zone}` is not a time zone; {LIKE}"))
}

/// Parses a duration from now, or a point in time.
pub(crate) fn expiry(text: &str) -> Result<Expiry, String> {
    if text.contains('T') { date(text).map(Expiry::At) } else { wait(text).map(Expiry::After) }
}

/// `+01:00`: whether it is east of Greenwich, and by how much.
fn offset(zone: &str) -> Option<(bool, Duration)> {
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let two_digits = |text: &str, most: u64| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|number| digits && *number <= most)
    };
    let minutes = two_digits(hours, 23)? * 60 + two_digits(minutes, 59)?;
    Some((zone.starts_with('+'), Duration::from_secs(minutes * 60)))
}

/// A duration in its two largest units: `1h 49m`.
pub(crate) fn short(duration: Duration) -> String {
    // Finer than that it only tires the eye.
    let rounded = match duration.as_secs() {
        0..60 => Duration::from_millis(duration.as_millis() as u64 / 100 * 100),
        seconds => Duration::from_secs(seconds),
    };
    if rounded < Duration::from_secs(60) && rounded.subsec_millis() > 0 {
        return format!("{:.1}s", rounded.as_secs_f64());
    }
    let whole = humantime::format_duration(rounded).to_string();
    let units: Vec<_> = whole.split(' ').take(2).collect();
    units.join(" ")
}

/// How long ago something was: `3m 12s ago`.
pub(crate) fn ago(at_ms: u64, now_ms: u64) -> String {
    let since = Duration::from_millis(now_ms.saturating_sub(at_ms));
    format!("{} ago", short(Duration::from_secs(since.as_secs())))
}

/// A point in time as RFC 3339, in UTC.
pub(crate) fn stamp(at_ms: u64) -> String {
    // The year 9999, the last one that has a stamp.
    let at = UNIX_EPOCH + Duration::from_millis(at_ms.min(253_402_300_799_000));
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        for (text, why) in [("5", "5m"), ("soon", "5m"), ("-1s", "5m"), ("9999years", "thousand")] {
            let error = duration(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(wait("0s").is_err());
    }

    #[test]
    fn dates_are_read_with_their_zone_and_refused_without() {
        let utc = date("2026-12-01T08:00:00Z").unwrap();
        assert_eq!(date("2026-12-01T09:30:00+01:30"), Ok(utc));
        assert_eq!(date("2026-12-01T03:00:00-05:00"), Ok(utc));
        assert_eq!(date("2026-12-01T08:00:00.000Z"), Ok(utc));
        for text in
            ["2026-12-01T08:00:00", "2026-12-01", "tomorrow", "2026-12-01T08:00:00+1", "é+é-12-01T"]
        {
            let error = date(text).unwrap_err();
            assert!(error.contains("2026-12-01T08:00:00Z"), "{text}: {error}");
        }
    }

    #[test]
    fn an_expiry_is_a_duration_or_a_date() {
        assert_eq!(expiry("1h"), Ok(Expiry::After(Duration::from_secs(3600))));
        assert!(matches!(expiry("2026-12-01T08:00:00Z"), Ok(Expiry::At(_))));
        assert!(expiry("never").is_err());
    }

    #[test]
    fn durations_are_shown_in_two_units() {
        for (ms, text) in [
            (800, "0.8s"),
            (3_200, "3.2s"),
            (5_000, "5s"),
            (6_553_600, "1h 49m"),
            (90_061_000, "1day 1h"),
        ] {
            assert_eq!(short(Duration::from_millis(ms)), text);
        }
        assert_eq!(ago(0, 192_900), "3m 12s ago");
        assert_eq!(stamp(1_000), "1970-01-01T00:00:01.000Z");
        assert_eq!(stamp(u64::MAX), "9999-12-31T23:59:59.000Z");
    }
}
