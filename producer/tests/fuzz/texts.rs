//! Texts that people and other programs write: the broker's URL, names, traces.

use forebay_producer::{Config, Delay, Envelope, TraceContext, check_kind, check_queue_name};

/// Longest that an error about one short text may be.
const LONGEST: usize = 1_000;

#[test]
fn url() {
    forebay_producer::testing::fuzz("tests/fuzz/corpus/url", check_url);
}

pub(crate) fn check_url(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let told = match Config::new(&text) {
        Ok(config) => {
            drop((config.vhost().to_owned(), config.uses_tls()));
            String::new()
        }
        Err(error) => error.to_string(),
    };
    assert!(told.len() <= LONGEST + text.len(), "{told}");

    // A password that begins so, whatever follows, is in no message.
    for url in [format!("amqp://u:hush{text}@a/v"), format!("amqps://u:hush@{text}")] {
        match Config::new(&url) {
            Ok(config) => {
                let shown = format!("{config:?} {} {}", config.broker(), config.vhost());
                assert!(!shown.contains("hush") || text.contains("hush"), "{url}: {shown}");
            }
            Err(error) => {
                let shown = format!("{error} {error:?}");
                assert!(!shown.contains("hush") || text.contains("hush"), "{url}: {shown}");
            }
        }
    }
    if let Ok(config) = Config::new("amqp://a").unwrap().namespace(&text) {
        assert_eq!(config.topology().namespace(), text);
    }
}

#[test]
fn names_and_traces() {
    forebay_producer::testing::fuzz("tests/fuzz/corpus/names_and_traces", check_names_and_traces);
}

pub(crate) fn check_names_and_traces(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for refused in [
        check_kind(&text).map_err(|error| error.to_string()),
        check_queue_name(&text).map_err(|error| error.to_string()),
    ] {
        assert!(refused.is_ok() || refused.unwrap_err().len() <= LONGEST, "{text}");
    }
    let mut envelope = Envelope::new("a.b", "mail", "{}");
    if let Err(why) = envelope.set_header(&text, "1") {
        assert!(why.len() <= LONGEST, "{why}");
    }
    let (parent, state) = text.split_once('\n').unwrap_or((&text, ""));
    match TraceContext::parse(parent) {
        Ok(trace) => {
            let trace = trace.with_state(state);
            envelope.set_trace(&trace);
            assert_eq!(envelope.trace(), Some(trace));
        }
        Err(error) => assert!(error.to_string().len() <= LONGEST, "{error}"),
    }
    let mut number = [0; 8];
    number.iter_mut().zip(input).for_each(|(to, from)| *to = *from);
    let wanted = std::time::Duration::from_millis(u64::from_be_bytes(number));
    match Delay::new(wanted) {
        Ok(Some(delay)) => assert!(delay.duration() >= wanted),
        Ok(None) => assert!(wanted.is_zero()),
        Err(error) => assert!(error.to_string().contains("310 days")),
    }
}
