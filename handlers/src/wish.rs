//! What a program wants to become of a job that failed, in the words of `docs/serve.md`.
//! In: `error`, `reject`, `retry_after` and `defer` of an answer. Out: an error for the worker.

use std::time::Duration;

use anyhow::anyhow;
use forebay_worker::JobError;
use serde_json::Value;

/// How much of a value that cannot be used is shown.
const SHOWN: usize = 120;

/// What is to become of a job that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Retry,
    RetryAfter(Duration),
    Defer(Duration),
    Reject,
}

impl Then {
    /// Reads the three keys, of which one may be there.
    ///
    /// # Errors
    /// What is wrong with them, as the end of "the program answered with …".
    pub(crate) fn read(
        reject: bool,
        retry_after: Option<Value>,
        defer: Option<Value>,
    ) -> Result<Self, String> {
        match (reject, retry_after, defer) {
            (true, None, None) => Ok(Self::Reject),
            (false, Some(value), None) => duration(&value, "retry_after").map(Self::RetryAfter),
            (false, None, Some(value)) => duration(&value, "defer").map(Self::Defer),
            (false, None, None) => Ok(Self::Retry),
            _ => Err("more than one of `reject`, `retry_after` and `defer`".to_owned()),
        }
    }

    /// The error that makes the worker do so.
    pub(crate) fn because(self, why: String) -> JobError {
        let error = match self {
            Self::RetryAfter(delay) => JobError::retry_after(delay),
            Self::Defer(delay) => JobError::defer(delay),
            Self::Retry if why.is_empty() => {
                return JobError::retry(anyhow!("the program gave no reason"));
            }
            Self::Reject if why.is_empty() => {
                return JobError::reject(anyhow!("the program gave no reason"));
            }
            Self::Retry => return JobError::retry(anyhow!(why)),
            Self::Reject => return JobError::reject(anyhow!(why)),
        };
        if why.is_empty() { error } else { error.because(anyhow!(why)) }
    }
}

/// `"30s"`, or a number of seconds.
fn duration(value: &Value, key: &str) -> Result<Duration, String> {
    let read = match value {
        Value::String(text) => humantime::parse_duration(text).ok(),
        Value::Number(number) => {
            number.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        }
        _ => None,
    };
    let shown = || beginning(value.to_string().as_bytes());
    read.ok_or_else(|| format!("a `{key}` that is no duration: {}", shown()))
}

/// The beginning of what a program wrote, fit for a log line.
pub(crate) fn beginning(line: &[u8]) -> String {
    let cut = line.len() > SHOWN;
    let text = String::from_utf8_lossy(&line[..line.len().min(SHOWN)]);
    let text: String = text.trim_end().escape_debug().collect();
    if cut { format!("{text}…") } else { text }
}
