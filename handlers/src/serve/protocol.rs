//! What a worker and a long-lived child process say to each other: lines of JSON.
//! In: a job, or a line of the child's. Out: the line for the child, or what the child means.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::capture::RESULT;
pub(super) use crate::wish::{Then, beginning};
use crate::word::{self, Word};

/// The version of the protocol; a child may name it when it is ready.
pub(super) const VERSION: u64 = 1;

/// The longest line of an answer: the largest result, and what stands around it.
pub(super) const ANSWER: usize = RESULT + 64 * 1024;

/// A job as the child is told about it. What is `None` is left out.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename = "job")]
pub(super) struct Task<'a> {
    /// Names this run; the same job may run again under another name.
    pub(super) run: &'a str,
    pub(super) id: &'a str,
    pub(super) kind: &'a str,
    pub(super) queue: &'a str,
    pub(super) attempt: u32,
    /// Milliseconds since the epoch.
    pub(super) deadline_ms: u64,
    pub(super) redelivered: bool,
    pub(super) crashes: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) claim_number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) traceparent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tracestate: Option<String>,
}

/// A batch as the child is told about it.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename = "batch")]
pub(super) struct BatchTask<'a> {
    /// Names this run.
    pub(super) run: &'a str,
    pub(super) kind: &'a str,
    pub(super) queue: &'a str,
    /// Milliseconds since the epoch.
    pub(super) deadline_ms: u64,
}

/// What a child says.
#[derive(Debug)]
pub(super) enum Message {
    /// It takes jobs from now on; how many at once, if it says so.
    Ready { jobs: Option<usize> },
    /// A run has ended.
    Answer { run: String, answer: Answer },
    /// How far a run is, or what it tells a channel.
    Word { run: String, word: Word },
    /// JSON that says nothing we know; a later version of the protocol may.
    Unknown,
}

/// How a run ended, as the child says.
#[derive(Debug)]
pub(super) enum Answer {
    Done(Box<RawValue>),
    Failed { why: String, then: Then },
}

/// The line that hands a job to the child. The payload is known to be JSON.
pub(super) fn job_line(task: &Task<'_>, payload: &str) -> Vec<u8> {
    let head = serde_json::to_string(task).expect("texts and numbers are JSON");
    let head = head.strip_suffix('}').expect("a struct ends so");
    let mut line = String::with_capacity(head.len() + payload.len() + 16);
    line.push_str(head);
    line.push_str(",\"payload\":");
    push_on_one_line(&mut line, payload);
    line.push_str("}\n");
    line.into_bytes()
}

/// The line that hands a batch to the child, with its jobs as a JSON array on one line.
pub(super) fn batch_line(task: &BatchTask<'_>, jobs: &str) -> Vec<u8> {
    let head = serde_json::to_string(task).expect("texts and numbers are JSON");
    let head = head.strip_suffix('}').expect("a struct ends so");
    format!("{head},\"jobs\":{jobs}}}\n").into_bytes()
}

/// The line that tells the child that a run's result no longer matters.
pub(super) fn cancel_line(run: &str) -> Vec<u8> {
    format!("{{\"type\":\"cancel\",\"run\":\"{run}\"}}\n").into_bytes()
}

/// JSON without anything that some language takes for the end of a line. A raw newline can only
/// stand between values, where a blank does as well; the others only in texts, where an escape does.
pub(super) fn push_on_one_line(line: &mut String, json: &str) {
    let ends = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut rest = json;
    while let Some(at) = rest.find(ends) {
        line.push_str(&rest[..at]);
        let end = rest[at..].chars().next().expect("it was just found");
        match end {
            '\n' | '\r' => line.push(' '),
            other => line.push_str(&format!("\\u{:04x}", u32::from(other))),
        }
        rest = &rest[at + end.len_utf8()..];
    }
    line.push_str(rest);
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    what: Option<String>,
    protocol: Option<u64>,
    jobs: Option<usize>,
    run: Option<String>,
    #[serde(default, deserialize_with = "present")]
    ok: Option<Box<RawValue>>,
    error: Option<String>,
    #[serde(default)]
    reject: bool,
    retry_after: Option<Value>,
    defer: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    progress: Option<Value>,
    emit: Option<Box<RawValue>>,
}

/// Tells `null` from nothing.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// Reads a line of the child's.
///
/// # Errors
/// What is wrong with it, with its beginning. The child can no longer be trusted then: the line
/// may have been the answer of any run.
pub(super) fn read(line: &[u8]) -> Result<Message, String> {
    let unreadable = |why: &dyn std::fmt::Display| {
        format!("wrote on descriptor 3 what cannot be read ({why}): {}", beginning(line))
    };
    // Beyond ASCII, serde_json looks at UTF-8 only where it makes a text of it.
    let text = std::str::from_utf8(line).map_err(|_| unreadable(&"it is not UTF-8"))?;
    let line: Line = serde_json::from_str(text).map_err(|error| unreadable(&error))?;
    if line.what.as_deref() == Some("ready") {
        return match line.protocol {
            None | Some(VERSION) => Ok(Message::Ready { jobs: line.jobs }),
            Some(other) => {
                Err(format!("speaks version {other} of the protocol; this worker speaks {VERSION}"))
            }
        };
    }
    match (line.what.as_deref(), line.run.clone()) {
        (None, Some(run)) => Ok(line.about(run)),
        _ => Ok(Message::Unknown),
    }
}

impl Line {
    fn about(self, run: String) -> Message {
        let failed = self.error.is_some()
            || self.reject
            || self.retry_after.is_some()
            || self.defer.is_some();
        let answer = match (self.ok, failed) {
            (None, false) => match (self.progress, self.emit) {
                (Some(progress), _) => {
                    return Message::Word { run, word: Word::Progress(progress) };
                }
                (None, Some(emit)) => return Message::Word { run, word: word::emission(&emit) },
                (None, None) => misanswered("with neither `ok`, `error`, `progress` nor `emit`"),
            },
            (Some(_), true) => misanswered("with `ok` and a failure at once"),
            (Some(result), false) => Answer::Done(result),
            (None, true) => {
                let why = self.error.unwrap_or_default();
                match Then::read(self.reject, self.retry_after, self.defer) {
                    Ok(then) => Answer::Failed { why, then },
                    Err(what) => misanswered_because(&format!("with {what}"), &why),
                }
            }
        };
        Message::Answer { run, answer }
    }
}

fn misanswered(what: &str) -> Answer {
    misanswered_because(what, "")
}

fn misanswered_because(what: &str, why: &str) -> Answer {
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    Answer::Failed { why: format!("the program answered {what}{why}"), then: Then::Retry }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task<'static> {
        Task {
            run: "7",
            id: "j\"1",
            kind: "a.b",
            queue: "mail",
            attempt: 2,
            deadline_ms: 1_700_000_000_000,
            redelivered: false,
            crashes: 0,
            idempotency_key: None,
            claim_number: None,
            traceparent: Some("00-1".to_owned()),
            tracestate: None,
        }
    }

    fn line(payload: &str) -> String {
        String::from_utf8(job_line(&task(), payload)).unwrap()
    }

    #[test]
    fn a_job_is_one_line_with_its_payload_as_it_stands() {
        assert_eq!(
            line(r#"{"n": 123456789012345678901234567890.10}"#),
            "{\"type\":\"job\",\"run\":\"7\",\"id\":\"j\\\"1\",\"kind\":\"a.b\",\"queue\":\"mail\",\
             \"attempt\":2,\"deadline_ms\":1700000000000,\"redelivered\":false,\"crashes\":0,\
             \"traceparent\":\"00-1\",\"payload\":{\"n\": 123456789012345678901234567890.10}}\n"
        );
    }

    #[test]
    fn nothing_in_a_payload_ends_the_line() {
        let payload = "{\r\n\"a\": \"x\\ny\u{2028}\u{2029}\u{85}é\",\n\"b\": [1,\n2]}\n";
        let line = line(payload);
        assert!(!line.trim_end_matches('\n').contains(['\n', '\r', '\u{85}', '\u{2028}']));
        let sent: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(sent["payload"], serde_json::from_str::<Value>(payload).unwrap());
    }

    #[test]
    fn a_cancel_names_the_run() {
        assert_eq!(cancel_line("7"), b"{\"type\":\"cancel\",\"run\":\"7\"}\n");
    }

    /// What a line means, in a few words.
    fn meant(line: &str) -> String {
        match read(line.as_bytes()) {
            Ok(Message::Ready { jobs }) => format!("ready {jobs:?}"),
            Ok(Message::Answer { run, answer: Answer::Done(result) }) => {
                format!("{run} done {result}")
            }
            Ok(Message::Answer { run, answer: Answer::Failed { why, then } }) => {
                format!("{run} {then:?} {why}")
            }
            Ok(Message::Word { run, word: Word::Progress(progress) }) => {
                format!("{run} at {progress}")
            }
            Ok(Message::Word { run, word: Word::Emit(emission) }) => format!("{run} {emission:?}"),
            Ok(Message::Word { run, word }) => format!("{run} {word:?}"),
            Ok(Message::Unknown) => "unknown".to_owned(),
            Err(why) => format!("broken: {why}"),
        }
    }

    #[test]
    fn lines_mean_what_is_documented() {
        let table = [
            (r#"{"type":"ready"}"#, "ready None"),
            (r#"{"type":"ready","protocol":1,"jobs":8,"new":true}"#, "ready Some(8)"),
            (
                r#"{"type":"ready","protocol":2}"#,
                "broken: speaks version 2 of the protocol; this worker speaks 1",
            ),
            (r#"{"run":"7","ok":{"pages": 3.10}}"#, r#"7 done {"pages": 3.10}"#),
            (r#"{"run":"7","ok":null}"#, "7 done null"),
            (
                r#"{"run":"7","ok":123456789012345678901234567890}"#,
                "7 done 123456789012345678901234567890",
            ),
            (r#"{"run":"7","error":"no"}"#, "7 Retry no"),
            (r#"{"run":"7","error":"no","reject":true}"#, "7 Reject no"),
            (r#"{"run":"7","error":"no","reject":false}"#, "7 Retry no"),
            (r#"{"run":"7","error":"no","retry_after":"1m 30s"}"#, "7 RetryAfter(90s) no"),
            (r#"{"run":"7","error":"no","retry_after":1.5}"#, "7 RetryAfter(1.5s) no"),
            (r#"{"run":"7","defer":"10s"}"#, "7 Defer(10s) "),
            (
                r#"{"run":"7","error":"no","defer":"soon"}"#,
                r#"7 Retry the program answered with a `defer` that is no duration: \"soon\": no"#,
            ),
            (
                r#"{"run":"7","error":"no","defer":-1}"#,
                "7 Retry the program answered with a `defer` that is no duration: -1: no",
            ),
            (
                r#"{"run":"7","reject":true,"defer":1}"#,
                "7 Retry the program answered with more than one of `reject`, `retry_after` and `defer`",
            ),
            (
                r#"{"run":"7"}"#,
                "7 Retry the program answered with neither `ok`, `error`, `progress` nor `emit`",
            ),
            (
                r#"{"run":"7","ok":1,"error":"no"}"#,
                "7 Retry the program answered with `ok` and a failure at once",
            ),
            (r#"{"run":"7","progress":{"pages":1}}"#, r#"7 at {"pages":1}"#),
            (r#"{"run":"7","progress":null}"#, "7 at null"),
            (
                r#"{"run":"7","emit":{"channel":"orders","event":"paid","data":{"n": 1.0}}}"#,
                "7 Emission { channel: \"orders\", event: \"paid\", data: RawValue({\"n\": 1.0}) }",
            ),
            (
                r#"{"run":"7","emit":{"channel":"orders","event":"paid"}}"#,
                "7 Emission { channel: \"orders\", event: \"paid\", data: RawValue(null) }",
            ),
            (
                r#"{"run":"7","emit":{"channel":7}}"#,
                "7 Garbled(Error(\"invalid type: integer `7`, expected a string\", line: 1, column: 12))",
            ),
            (r#"{"type":"later","run":"7"}"#, "unknown"),
            (r#"{"hello":1}"#, "unknown"),
        ];
        for (line, expected) in table {
            assert_eq!(meant(line), expected, "{line}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_beginning() {
        let table: [(&[u8], &str); 5] = [
            (b"hello\n", "(expected value at line 1 column 1): hello"),
            (b"[1]", "): [1]"),
            (b"{\"run\":7,\"ok\":1}", "(invalid type: integer `7`, expected a string"),
            (b"{\"run\":\"7\",\"ok\":\"\xff\"}", "(it is not UTF-8): {\\\"run"),
            (b"", "(EOF while parsing"),
        ];
        for (line, words) in table {
            let why = read(line).unwrap_err();
            assert!(why.starts_with("wrote on descriptor 3 what cannot be read ("), "{why}");
            assert!(why.contains(words), "{why}\n{words}");
        }
        let long = read("x".repeat(1_000_000).as_bytes()).unwrap_err();
        assert!(long.len() < 300 && long.ends_with("x…"), "{long}");
    }
}
