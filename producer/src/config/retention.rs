//! How long events are kept, as people write it.
//! In: `7days`, `1GB`. Out: a [`Retention`].

use super::{Config, ConfigError, stated, variable};
use crate::wire::topology::Retention;

/// The settings: name in the manifest, and variable.
const SETTINGS: [(&str, &str); 3] = [
    ("max_age", "FOREBAY_EVENTS_MAX_AGE"),
    ("max_size", "FOREBAY_EVENTS_MAX_SIZE"),
    ("segment_size", "FOREBAY_EVENTS_SEGMENT_SIZE"),
];

impl Retention {
    /// Sets `max_age` (`7days`), `max_size` or `segment_size` (`20MB`) from text.
    ///
    /// # Errors
    /// What may stand there.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match name {
            "max_age" => {
                let age = humantime::parse_duration(value).ok();
                let age = age.filter(|age| age.as_secs() > 0);
                self.max_age = age.ok_or("a duration of a second or more, such as 12h or 7days")?;
            }
            "max_size" => self.max_bytes = size(value)?,
            "segment_size" => self.segment_bytes = size(value)?,
            _ => return Err("max_age, max_size or segment_size"),
        }
        Ok(())
    }
}

impl Config {
    /// Reads how long events are kept, if their stream has to be declared:
    /// `FOREBAY_EVENTS_MAX_AGE` (`7days`), `FOREBAY_EVENTS_MAX_SIZE` (`1GB`) and
    /// `FOREBAY_EVENTS_SEGMENT_SIZE` (`20MB`). Each that is set comes before what was set here.
    /// [`Config::from_env`] does it as well.
    ///
    /// # Errors
    /// [`ConfigError::Variable`] naming the variable.
    pub fn retention_from_env(self) -> Result<Self, ConfigError> {
        self.retention_from(stated)
    }

    pub(super) fn retention_from(
        mut self,
        look: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        for (name, from) in SETTINGS {
            if let Some(value) = look(from) {
                let set = self.retention.set(name, &value);
                set.map_err(|allowed| variable(from, value, allowed))?;
            }
        }
        Ok(self)
    }
}

fn size(text: &str) -> Result<u64, &'static str> {
    const LIKE: &str = "a size with its unit, such as 500MB, 1GB or 20MiB";
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or(LIKE)?;
    let (digits, unit) = text.split_at(split);
    let factor: u64 = match unit.trim() {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(LIKE),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.filter(|bytes| *bytes > 0).ok_or(LIKE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_setting_is_read_with_its_unit_and_a_bad_one_is_named() {
        let read = |pairs: &'static [(&str, &str)]| {
            let config = Config::new("amqp://a").unwrap();
            config.retention_from(move |name| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let config = read(&[
            ("FOREBAY_EVENTS_MAX_AGE", "12h"),
            ("FOREBAY_EVENTS_MAX_SIZE", "5GB"),
            ("FOREBAY_EVENTS_SEGMENT_SIZE", "4MiB"),
        ]);
        let kept = config.unwrap().retention;
        assert_eq!(kept.max_age, Duration::from_secs(43_200));
        assert_eq!((kept.max_bytes, kept.segment_bytes), (5_000_000_000, 4 << 20));
        let error = read(&[("FOREBAY_EVENTS_MAX_SIZE", "5")]).unwrap_err().to_string();
        assert!(
            error.starts_with("FOREBAY_EVENTS_MAX_SIZE=5 is not allowed: use a size"),
            "{error}"
        );
        assert!(read(&[("FOREBAY_EVENTS_MAX_AGE", "10ms")]).is_err());
        assert!(read(&[("FOREBAY_EVENTS_SEGMENT_SIZE", "99999999999TB")]).is_err());
    }
}
