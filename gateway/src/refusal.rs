//! What a client is told when something is not done.
//! In: a code, what happened, what to do about it. Out: the same answer on every transport.

use std::fmt;
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Why something is not done: a code for programs, a message and a remedy for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    code: Code,
    message: String,
    remedy: String,
    retry_after: Option<Duration>,
}

/// The codes of [`Refusal`]s; `docs/gateway.md` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The request has the wrong form.
    BadRequest,
    /// The request, or what it carries, is larger than allowed.
    TooLarge,
    /// There is no such verb or page.
    Unknown,
    /// No token or ticket, or one that does not hold.
    Unauthenticated,
    /// The token does not allow it.
    Forbidden,
    /// The page that asks is not on the list of origins.
    OriginRefused,
    /// There is no such job, or it belongs to somebody else.
    NotFound,
    /// Too many requests in too little time.
    RateLimited,
    /// Too many connections, subscriptions, or requests that wait.
    TooMany,
    /// The broker did not take the job; it is not on its queue.
    Refused,
    /// It is not known whether the job is on its queue.
    Unconfirmed,
    /// It cannot be done now.
    Unavailable,
}

impl Code {
    /// The word that stands in the answer.
    pub fn word(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::Unknown => "unknown",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::OriginRefused => "origin_refused",
            Self::NotFound => "not_found",
            Self::RateLimited => "rate_limited",
            Self::TooMany => "too_many",
            Self::Refused => "refused",
            Self::Unconfirmed => "unconfirmed",
            Self::Unavailable => "unavailable",
        }
    }

    /// The status of an HTTP answer.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden | Self::OriginRefused => 403,
            Self::Unknown | Self::NotFound => 404,
            Self::TooLarge => 413,
            Self::RateLimited | Self::TooMany => 429,
            Self::Refused => 502,
            Self::Unavailable => 503,
            Self::Unconfirmed => 504,
        }
    }
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: remedy.into(), retry_after: None }
    }

    pub(crate) fn bad(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, message, remedy)
    }

    pub(crate) fn unauthenticated(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Code::Unauthenticated, message, remedy)
    }

    pub(crate) fn forbidden(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Code::Forbidden, message, remedy)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message, "try again later").retry_after(Duration::from_secs(1))
    }

    pub(crate) fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// How long to wait before trying again, if waiting helps.
    pub fn wait(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.code.word(), self.message, self.remedy)
    }
}

impl std::error::Error for Refusal {}

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = if self.retry_after.is_some() { 4 } else { 3 };
        let mut body = serializer.serialize_struct("Refusal", fields)?;
        body.serialize_field("code", self.code.word())?;
        body.serialize_field("message", &self.message)?;
        body.serialize_field("remedy", &self.remedy)?;
        if let Some(wait) = self.retry_after {
            let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
            body.serialize_field("retry_after_ms", &ms)?;
        }
        body.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_alike_for_programs_and_people() {
        let refusal = Refusal::bad("`kind` is missing", "name the kind of job");
        assert_eq!(refusal.to_string(), "bad_request: `kind` is missing; name the kind of job");
        let json = serde_json::to_value(&refusal).unwrap();
        let expected = serde_json::json!({
            "code": "bad_request",
            "message": "`kind` is missing",
            "remedy": "name the kind of job",
        });
        assert_eq!(json, expected);
        let later = serde_json::to_value(refusal.retry_after(Duration::from_micros(5))).unwrap();
        assert_eq!(later["retry_after_ms"], 1, "zero would be an invitation");
    }
}
