//! The place of an event on its stream, as clients keep it.
//! In: an offset and an id. Out: a text, and back.

use std::fmt;
use std::str::FromStr;

/// The place of an event on the stream: from there a reader goes on.
///
/// As text it is `OFFSET.ID`; the place before all events is `0.-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Token {
    /// The offset on the stream.
    pub offset: u64,
    /// The id of the event that is there; `None` is the very beginning.
    pub id: Option<String>,
}

impl Token {
    /// The place before all events.
    pub const BEGINNING: Self = Self { offset: 0, id: None };

    /// The place of the event with this id.
    pub fn new(offset: u64, id: impl Into<String>) -> Self {
        Self { offset, id: Some(id.into()) }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.", self.offset)?;
        f.write_str(self.id.as_deref().unwrap_or("-"))
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('.');
        let token = parts.and_then(|(offset, id)| match (offset.parse().ok()?, id) {
            (0, "-") => Some(Self::BEGINNING),
            (offset, id) => is_id(id).then(|| Self::new(offset, id)),
        });
        token.ok_or(InvalidToken)
    }
}

/// A text that is no [`Token`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "that is no token; one looks like `4711.0199e0a8-7c00-7000-8000-000000000001` and comes with \
     every event, `0.-` means from the beginning"
)]
pub struct InvalidToken;

/// Ids stand in tokens and in lines of server-sent events.
pub(super) fn is_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (2..=64).contains(&id.len()) && id.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::envelope::new_id;

    #[test]
    fn a_token_is_read_as_it_is_written() {
        for token in [Token::BEGINNING, Token::new(0, new_id()), Token::new(u64::MAX, new_id())] {
            assert_eq!(token.to_string().parse(), Ok(token));
        }
        for text in ["", "7", "7.", ".a", "-1.ab", "7.-", "7.a b", "7.a.b", "x.ab", "7.a\r\n"] {
            assert_eq!(text.parse::<Token>(), Err(InvalidToken), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_it_was_written_or_refused(text in "[0-9]{0,22}\\.?\\PC{0,70}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.to_string().parse(), Ok(token));
            }
        }
    }
}
