//! An event as a line, pure.
//! In: an event. Out: a line for people, or for programs.

use std::time::{Duration, UNIX_EPOCH};

use forebay_producer::{Event, EventKind, Gap, Stored};
use serde_json::Value;

use super::Whom;
use crate::{moment, screen};

/// One line; for people, as much of it as the screen is wide.
pub(crate) fn shown(stored: &Stored, whom: &Whom, people: bool) -> String {
    if people { screen::fitting(&for_people(&stored.event, whom)) } else { as_json(stored) }
}

/// The event with its token in front.
fn as_json(stored: &Stored) -> String {
    // Written anew, so that it has no `token` of a stranger's.
    let event = stored.event.encode();
    let rest = String::from_utf8_lossy(&event[1..]).into_owned();
    format!("{{\"token\":\"{}\",{}", stored.token(), one_line(&rest))
}

/// Data is as its sender wrote it; between values a line end means no more than a blank.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

fn for_people(event: &Event, whom: &Whom) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(event.time_ms);
    let time = humantime::format_rfc3339_millis(time);
    let what = match whom {
        Whom::Channel(_) => event.event.as_deref().unwrap_or_default(),
        _ => event.what.word(),
    };
    let whose = match whom {
        Whom::Kind(_) => format!("{}  ", event.subject),
        _ => String::new(),
    };
    let attempt = match event.attempt {
        Some(attempt) if attempt > 1 => format!("attempt {attempt}  "),
        _ => String::new(),
    };
    format!("{time}  {what:<9}  {whose}{attempt}{}", detail(event))
}

/// What the data means.
pub(crate) fn detail(event: &Event) -> String {
    let data: Value = serde_json::from_str(event.data.get()).unwrap_or_default();
    let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
    let wait = || data["delay_ms"].as_u64().map(|ms| moment::short(Duration::from_millis(ms)));
    match event.what {
        EventKind::Queued => {
            let queue = event.queue.as_deref().unwrap_or_default();
            let wait = wait().map_or_else(String::new, |wait| format!(", in {wait}"));
            format!("on {queue}{wait}")
        }
        EventKind::Started => String::new(),
        EventKind::Retrying => {
            let wait = wait().unwrap_or_default();
            format!("again in {wait}: {}: {}", text("reason"), text("error"))
        }
        EventKind::Succeeded => match data["bytes"].as_u64() {
            Some(bytes) => format!("a result of {} bytes", screen::thousands(bytes)),
            None => data["result"].to_string(),
        },
        EventKind::Dead => format!("{}: {}", text("reason"), text("error")),
        _ => one_line(event.data.get()),
    }
}

/// What a gap means.
pub(crate) fn gap(gap: Gap) -> &'static str {
    match gap {
        Gap::Retention => {
            "some events are no longer kept; what follows begins with the oldest that is"
        }
        Gap::Recreated => {
            "the stream of events was made anew, or the token is of another one; what follows \
             begins with the oldest event that is there"
        }
        _ => "some events are missing; what follows begins with the oldest that is there",
    }
}

#[cfg(test)]
mod tests {
    use forebay_producer::wire::event::event_data;
    use forebay_producer::{Envelope, Failure, Reason};
    use serde_json::json;

    use super::*;

    fn job() -> Envelope {
        Envelope::new("mail.send", "mail", "{}")
    }

    #[test]
    fn each_event_says_what_matters() {
        let failure = Failure::new(1, 1, Reason::Failed, "smtp is down", "node/1");
        let large = vec![b' '; 20_000];
        let wait = Duration::from_millis(1_600);
        for (event, expected) in [
            (Event::queued(&job(), None), "on mail"),
            (Event::queued(&job(), Some(wait)), "on mail, in 1.6s"),
            (Event::started(&job()), ""),
            (Event::retrying(&job(), wait, &failure), "again in 1.6s: failed: smtp is down"),
            (Event::succeeded(&job(), Some(br#"{"pages": 3}"#)), r#"{"pages":3}"#),
            (Event::succeeded(&job(), None), "null"),
            (Event::succeeded(&job(), Some(&large)), "a result of 20,000 bytes"),
            (Event::dead(&job(), "rejected", "no such account"), "rejected: no such account"),
        ] {
            assert_eq!(detail(&event), expected);
        }
        let data = event_data(&json!({ "n": 1 })).unwrap();
        let told = Event::of_channel("orders", "paid", data).unwrap();
        assert_eq!(detail(&told), r#"{"n":1}"#);
    }

    #[test]
    fn what_a_stranger_wrote_cannot_steer_the_terminal() {
        let event = Event::dead(&job(), "failed", "\u{1b}[2J\u{9b}31m\nmore");
        let line = screen::fitting(&for_people(&event, &Whom::Kind("mail.send".to_owned())));
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        assert!(line.contains("dead") && line.contains(&event.subject), "{line}");
    }
}
