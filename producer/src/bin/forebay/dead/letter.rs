//! One dead letter as people and as programs read it.
//! In: a dead letter. Out: a row, JSON, or a page with everything that is known of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use forebay_producer::{DeadLetter, Failure};
use serde_json::{Map, Value, json};

use crate::{moment, screen};

/// Bytes of a payload that is not JSON, as far as they are shown.
const PREVIEW: usize = 1_024;

/// id, kind, queue, reason, attempts, died, last error.
pub(super) fn row(letter: &DeadLetter, now_ms: u64) -> [String; 7] {
    let envelope = &letter.envelope;
    [
        envelope.id.clone(),
        envelope.kind.clone().unwrap_or_else(|| "-".to_owned()),
        envelope.queue.clone(),
        letter.reason.clone(),
        envelope.attempt.to_string(),
        letter.died_at_ms.map_or_else(|| "-".to_owned(), |at| moment::ago(at, now_ms)),
        envelope.failures.last().map(|failure| gist(&failure.message)).unwrap_or_default(),
    ]
}

/// The last line of an error: where a program's trace ends with what went wrong.
fn gist(message: &str) -> String {
    let mut lines = message.lines().map(str::trim);
    lines.rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// Everything, for programs. The payload is `payload` if it is JSON, else `payload_base64`.
pub(super) fn json(letter: &DeadLetter) -> Value {
    let envelope = &letter.envelope;
    let mut all = json!({
        "id": envelope.id,
        "kind": envelope.kind,
        "queue": envelope.queue,
        "reason": letter.reason,
        "died_at": letter.died_at_ms.map(moment::stamp),
        "attempts": envelope.attempt,
        "crashes": envelope.crashes,
        "redrives": envelope.redrives,
        "published_at": envelope.published_at_ms.map(moment::stamp),
        "expires_at": envelope.expires_at_ms.map(moment::stamp),
        "idempotency_key": envelope.idempotency_key,
        "correlation_id": envelope.correlation_id,
        "owner": envelope.owner,
        "content_type": envelope.content_type,
        "failures": envelope.failures.iter().map(failure).collect::<Value>(),
        "headers": envelope.headers(),
        "headers_left_out": envelope.broker.omitted,
    });
    let (name, payload) = match serde_json::from_slice::<Value>(&envelope.payload) {
        Ok(payload) => ("payload", payload),
        Err(_) => ("payload_base64", STANDARD.encode(&envelope.payload).into()),
    };
    if let Some(all) = all.as_object_mut() {
        all.insert(name.to_owned(), payload);
        leave_out_nothings(all);
    }
    all
}

/// Everything, for people.
pub(super) fn page(letter: &DeadLetter, now_ms: u64) -> String {
    let envelope = &letter.envelope;
    let mut page = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            page.push_str(&format!("{:<16} {}\n", format!("{name}:"), screen::printable(&value)));
        }
    };
    let time = |at: u64| format!("{} ({})", moment::stamp(at), moment::ago(at, now_ms));
    let unless_zero = |count: u32| (count > 0).then(|| count.to_string());
    line("id", Some(envelope.id.clone()));
    line("kind", envelope.kind.clone());
    line("queue", Some(envelope.queue.clone()));
    line("reason", Some(letter.reason.clone()));
    line("died", letter.died_at_ms.map(time));
    line("published", envelope.published_at_ms.map(time));
    line("expired", envelope.expires_at_ms.map(moment::stamp));
    line("attempts", Some(envelope.attempt.to_string()));
    line("crashes", unless_zero(envelope.crashes));
    line("redrives", unless_zero(envelope.redrives));
    line("idempotency key", envelope.idempotency_key.clone());
    line("correlation id", envelope.correlation_id.clone());
    line("owner", envelope.owner.clone());
    for (name, value) in envelope.headers() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        line("header", Some(format!("{name}={value}")));
    }
    // A redrive goes without them: no frame can hold them.
    line("left out", envelope.broker.omitted.clone());
    for failure in &envelope.failures {
        page.push_str(&paragraph(failure));
    }
    page.push_str(&format!(
        "\npayload, {} bytes:\n{}",
        envelope.payload.len(),
        preview(&envelope.payload)
    ));
    page
}

fn failure(failure: &Failure) -> Value {
    json!({
        "at": moment::stamp(failure.at_ms),
        "attempt": failure.attempt,
        "reason": failure.reason.as_str(),
        "worker": failure.worker,
        "message": failure.message,
    })
}

fn paragraph(failure: &Failure) -> String {
    let head = format!(
        "attempt {} on {}: {}",
        failure.attempt,
        screen::printable(&failure.worker),
        screen::printable(failure.reason.as_str())
    );
    let message = failure.message.lines().map(|line| format!("    {}\n", screen::printable(line)));
    format!("\n{}  {head}\n{}", moment::stamp(failure.at_ms), message.collect::<String>())
}

/// JSON indented, other text as it is, anything else as hexadecimal bytes.
fn preview(payload: &[u8]) -> String {
    if let Ok(json) = serde_json::from_slice::<Value>(payload) {
        return format!("{json:#}");
    }
    let shown = &payload[..payload.len().min(PREVIEW)];
    let text = match std::str::from_utf8(shown) {
        Ok(text) => Some(text),
        // Cut in the middle of a character.
        Err(error) if error.error_len().is_none() && shown.len() < payload.len() => {
            std::str::from_utf8(&shown[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let mut preview = match text {
        Some(text) => text.lines().map(screen::printable).collect::<Vec<_>>().join("\n"),
        None => hex_lines(shown),
    };
    if shown.len() < payload.len() {
        preview.push_str("\n… (`forebay dead export` has all of it)");
    }
    preview
}

fn hex_lines(bytes: &[u8]) -> String {
    let line =
        |chunk: &[u8]| chunk.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    bytes.chunks(16).map(line).collect::<Vec<_>>().join("\n")
}

fn leave_out_nothings(all: &mut Map<String, Value>) {
    const ALWAYS: [&str; 3] = ["kind", "died_at", "payload"];
    all.retain(|name, value| !value.is_null() || ALWAYS.contains(&name.as_str()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_shown_as_what_it_is() {
        assert_eq!(preview(b"{\"a\":1}"), "{\n  \"a\": 1\n}");
        assert_eq!(preview(b"a\x1b[2J\nb"), "a\\u{1b}[2J\nb");
        assert_eq!(preview(&[0xff, 0x00]), "ff 00");
    }

    #[test]
    fn of_a_long_error_its_last_line_is_shown() {
        let trace = "`python3` ended with exit code 1: Traceback\n    f()\nOSError: full\n\n";
        assert_eq!(gist(trace), "OSError: full");
        assert_eq!((gist("refused"), gist("")), ("refused".to_owned(), String::new()));
    }

    #[test]
    fn a_long_payload_is_cut_at_a_character() {
        let long = "é".repeat(PREVIEW);
        let odd = format!("a{long}");
        for text in [long, odd] {
            let preview = preview(text.as_bytes());
            assert!(preview.contains("éé") && preview.contains("dead export"), "{preview}");
        }
    }
}
