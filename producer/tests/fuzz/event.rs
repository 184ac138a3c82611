//! Messages on the stream of events, which anybody may have put there, and places on it.

use forebay_producer::{Event, Token};

/// Longest that an error about a message may be.
const LONGEST: usize = 1_000;

#[test]
fn event() {
    forebay_producer::testing::fuzz("tests/fuzz/corpus/event", check_event);
}

pub(crate) fn check_event(input: &[u8]) {
    match Event::decode(input) {
        Ok(event) => {
            // What is handed on can be read again, and names one line of a stream for browsers.
            let again = Event::decode(&event.encode()).unwrap();
            assert_eq!(again.encode(), event.encode());
            assert!(!event.id.contains(|c: char| c.is_control() || c.is_whitespace()));
            assert_eq!(
                Token::new(7, &*event.id).to_string().parse(),
                Ok(Token::new(7, &*event.id))
            );
            assert!(event.routing_key().len() <= 255);
            _ = (event.properties(), event.time());
        }
        Err(error) => assert!(error.to_string().len() <= LONGEST + input.len(), "{error}"),
    }
    let text = String::from_utf8_lossy(input);
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string().parse(), Ok(token));
    }
}
