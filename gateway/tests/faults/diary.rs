//! What one client was told, in the order in which it came.
//! In: words of the gateway. Out: the newest token, and notes for the checker.

use forebay_producer::Token;
use serde_json::Value;
use tokio::time::Instant;

/// One thing that a client was told.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    pub(crate) at: Instant,
    pub(crate) word: Word,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    /// Its subscription was answered; it had asked from there. A session begins.
    Joined {
        from: Option<Token>,
        recovered: bool,
        token: Token,
    },
    Event {
        id: String,
    },
    /// A newer token, without an event.
    Token,
    Gap {
        reason: String,
    },
    /// It is sent away.
    Bye {
        reason: String,
    },
    /// Its session is over, and why.
    Parted {
        because: String,
    },
    /// What cannot be understood.
    Nonsense {
        what: String,
    },
}

/// The diary of one client.
#[derive(Debug, Default)]
pub(crate) struct Diary {
    pub(crate) notes: Vec<Note>,
    /// The newest token that it was given: given last, not highest.
    pub(crate) token: Option<String>,
    /// It has seen the last event.
    pub(crate) is_through: bool,
}

impl Diary {
    pub(crate) fn note(&mut self, word: Word) {
        self.notes.push(Note { at: Instant::now(), word });
    }

    /// A subscription was answered.
    pub(crate) fn joined(&mut self, answer: &Value) {
        let from = self.token.as_deref().and_then(|token| token.parse().ok());
        match answer["token"].as_str().and_then(|token| token.parse().ok()) {
            Some(token) => {
                let recovered = answer["recovered"] == true;
                self.note(Word::Joined { from, recovered, token });
                self.token = answer["token"].as_str().map(str::to_owned);
            }
            None => self.nonsense(answer),
        }
    }

    pub(crate) fn event(&mut self, event: &Value, token: &Value) {
        let (Some(id), Some(token)) = (event["id"].as_str(), token.as_str()) else {
            return self.nonsense(event);
        };
        self.note(Word::Event { id: id.to_owned() });
        self.token = Some(token.to_owned());
        self.is_through |= event["event"] == "last";
    }

    /// `gap`, `token`, `alive` or `bye`, with what it carries.
    pub(crate) fn notice(&mut self, name: &str, body: &Value) {
        let reason = || body["reason"].as_str().unwrap_or_default().to_owned();
        match name {
            "gap" => self.note(Word::Gap { reason: reason() }),
            "token" => self.note(Word::Token),
            "alive" => {}
            "bye" => self.note(Word::Bye { reason: reason() }),
            _ => return self.nonsense(body),
        }
        if let Some(token) = body["token"].as_str() {
            self.token = Some(token.to_owned());
        }
    }

    pub(crate) fn nonsense(&mut self, what: &Value) {
        self.note(Word::Nonsense { what: what.to_string() });
    }

    pub(crate) fn parted(&mut self, because: String) {
        self.note(Word::Parted { because });
    }
}
