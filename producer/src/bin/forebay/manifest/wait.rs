//! How long a function may have a job wait on the delay ladder.
//! In: what stands in its table. Out: the longest wait. What cannot be understood counts as left
//! out: `forebay-run --check` is who finds fault with it.

use std::time::Duration;

use serde::Deserialize;
use toml::Value;

/// Waits that need no failure: a shutdown gives jobs back for up to so long; put-offs of programs
/// and suspects take less.
const ALWAYS: Duration = Duration::from_secs(25);
/// The longest `Retry-After` of an endpoint that is believed.
const RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The keys of a function that have a say in it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Waits {
    retry: Option<Value>,
    http: Option<Value>,
    r#use: Option<Value>,
}

/// As the worker's retry policy, without the random part.
struct Policy {
    max_attempts: u32,
    base: Duration,
    factor: f64,
    cap: Duration,
}

const EVERYBODY: Policy = Policy {
    max_attempts: 5,
    base: Duration::from_secs(1),
    factor: 2.0,
    cap: Duration::from_secs(3600),
};
const EMAIL: Policy = Policy { max_attempts: 15, base: Duration::from_secs(30), ..EVERYBODY };

impl Waits {
    /// The longest wait that a worker asks for by itself. A program that answers with a
    /// `retry_after` of its own may ask for a longer one.
    pub(super) fn longest(&self) -> Duration {
        let policy = self.policy();
        let retry = policy.longest();
        let asked = (self.http.is_some() && policy.max_attempts > 1).then_some(RETRY_AFTER);
        [Some(ALWAYS), retry, asked].into_iter().flatten().max().unwrap_or(ALWAYS)
    }

    fn policy(&self) -> Policy {
        match &self.retry {
            Some(Value::String(word)) if word == "never" => Policy { max_attempts: 1, ..EVERYBODY },
            Some(Value::Table(table)) => Policy::read(table),
            _ if self.r#use.as_ref().and_then(Value::as_str) == Some("email.send") => EMAIL,
            _ => EVERYBODY,
        }
    }
}

impl Policy {
    fn read(table: &toml::Table) -> Self {
        let duration =
            |key| table.get(key)?.as_str().and_then(|v| humantime::parse_duration(v).ok());
        let max = table.get("max_attempts").and_then(Value::as_integer);
        let base = duration("base").unwrap_or(EVERYBODY.base);
        let factor = table.get("factor").and_then(|value| match value {
            Value::Integer(whole) => Some(*whole as f64),
            value => value.as_float(),
        });
        Self {
            max_attempts: max
                .and_then(|max| u32::try_from(max).ok())
                .unwrap_or(EVERYBODY.max_attempts),
            base,
            factor: factor.unwrap_or(EVERYBODY.factor),
            cap: duration("cap").unwrap_or(EVERYBODY.cap.max(base)),
        }
    }

    /// The wait before the last attempt, if there is more than one: none before it is longer.
    fn longest(&self) -> Option<Duration> {
        let waits = self.max_attempts.checked_sub(2)?;
        let growth = self.factor.max(1.0).powi(i32::try_from(waits).unwrap_or(i32::MAX));
        let grown = self.base.as_secs_f64() * growth.min(f64::MAX);
        let grown = Duration::try_from_secs_f64(grown).unwrap_or(self.cap);
        Some(grown.min(self.cap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_follows_from_retry_and_from_what_runs() {
        for (function, seconds) in [
            ("", 25),
            ("retry = \"never\"", 25),
            ("retry = { max_attempts = 1, base = \"5h\" }", 25),
            ("retry = { max_attempts = 3, base = \"5h\" }", 5 * 3600),
            ("retry = { max_attempts = 3, base = \"5h\", cap = \"6h\" }", 6 * 3600),
            ("retry = { max_attempts = 3, base = \"1h\", cap = \"3h\" }", 2 * 3600),
            ("retry = { max_attempts = 4, base = \"1m\", factor = 3 }", 9 * 60),
            ("retry = { max_attempts = 4, base = \"1m\", factor = 0.5 }", 60),
            ("retry = { max_attempts = 1_000_000, factor = 1e300, cap = \"2days\" }", 2 * 86_400),
            ("retry = { max_attempts = 20 }", 3600),
            ("http = \"http://a\"", 86_400),
            ("http = \"http://a\"\nretry = \"never\"", 25),
            ("use = \"email.send\"", 3600),
            ("use = \"email.send\"\nretry = { max_attempts = 2 }", 25),
            // Not understood: as if it were not there.
            ("retry = { max_attempts = \"many\", base = 5, cap = \"long\", odd = 1 }", 25),
            ("retry = 3\nhttp = 7\nuse = []", 86_400),
        ] {
            let waits: Waits = toml::from_str(function).unwrap();
            assert_eq!(waits.longest(), Duration::from_secs(seconds), "{function}");
        }
    }
}
