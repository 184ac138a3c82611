//! The trace that a job belongs to, by W3C Trace Context; pure.
//! In: `traceparent` and `tracestate` as anybody may have written them. Out: a context that may
//! travel on, or what is wrong with it.

/// The header that names trace and parent span.
pub const TRACEPARENT: &str = "traceparent";
/// The header for what tracing systems add; it means nothing without the other.
pub const TRACESTATE: &str = "tracestate";

/// `00-` trace id `-` span id `-` flags.
const LENGTH: usize = 55;
const MOST_MEMBERS: usize = 32;
const LONGEST_PART: usize = 256;
const LONGEST_SHOWN: usize = 80;

/// Which trace a job belongs to, and which span of it is its parent (W3C Trace Context, level 1).
///
/// ```
/// use forebay_producer::TraceContext;
///
/// let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")?;
/// assert_eq!(trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// # Ok::<(), forebay_producer::InvalidTraceparent>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    parent: String,
    state: Option<String>,
}

/// A text that is no `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{value}` is no traceparent: {why}; one looks like 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)]
#[non_exhaustive]
pub struct InvalidTraceparent {
    /// The beginning of the text.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl TraceContext {
    /// Reads a `traceparent`. Of a version newer than 00 the part that this one knows counts; the
    /// text is kept as it is.
    ///
    /// # Errors
    /// [`InvalidTraceparent`] says what is wrong.
    pub fn parse(traceparent: &str) -> Result<Self, InvalidTraceparent> {
        match fault(traceparent.as_bytes()) {
            None => Ok(Self { parent: traceparent.to_owned(), state: None }),
            Some(why) => {
                let value = traceparent.chars().take(LONGEST_SHOWN).collect();
                Err(InvalidTraceparent { value, why })
            }
        }
    }

    /// Adds the `tracestate` that came with it; one that cannot be read is left out, as the
    /// standard asks for.
    #[must_use]
    pub fn with_state(mut self, tracestate: &str) -> Self {
        self.state = is_state(tracestate).then(|| tracestate.to_owned());
        self
    }

    /// The text of header `traceparent`.
    pub fn traceparent(&self) -> &str {
        &self.parent
    }

    /// The text of header `tracestate`, if there is one.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The trace: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        &self.parent[3..35]
    }

    /// The parent span: 16 hexadecimal digits.
    pub fn span_id(&self) -> &str {
        &self.parent[36..52]
    }

    /// Whether whoever began the trace, or took part in it, records it.
    pub fn sampled(&self) -> bool {
        u8::from_str_radix(&self.parent[53..LENGTH], 16).is_ok_and(|flags| flags & 1 == 1)
    }
}

fn fault(text: &[u8]) -> Option<&'static str> {
    if text.len() < LENGTH {
        return Some("it is shorter than 55 characters");
    }
    if [2, 35, 52].iter().any(|at| text[*at] != b'-') {
        return Some("its four parts have 2, 32, 16 and 2 characters, with - in between");
    }
    let parts = [&text[..2], &text[3..35], &text[36..52], &text[53..LENGTH]];
    if !parts.iter().all(|part| part.iter().all(is_hex)) {
        return Some("its parts are hexadecimal digits, in lower case");
    }
    match (parts[0], text.get(LENGTH)) {
        (b"ff", _) => return Some("there is no version ff"),
        (b"00", Some(_)) => return Some("version 00 has 55 characters"),
        (_, Some(next)) if *next != b'-' => return Some("its flags have 2 characters"),
        _ => {}
    }
    if [parts[1], parts[2]].iter().any(|id| id.iter().all(|digit| *digit == b'0')) {
        return Some("an id of zeros only is none");
    }
    // A newer version may add parts, of characters that can be in a header.
    (!text.iter().all(u8::is_ascii_graphic)).then_some("it has characters that no header can have")
}

fn is_hex(digit: &u8) -> bool {
    matches!(digit, b'0'..=b'9' | b'a'..=b'f')
}

/// Up to 32 members `key=value`, separated by commas; empty ones are allowed, all empty is none.
fn is_state(text: &str) -> bool {
    let members = text.split(',').map(|member| member.trim_matches([' ', '\t']));
    let members: Vec<_> = members.filter(|member| !member.is_empty()).collect();
    (1..=MOST_MEMBERS).contains(&members.len()) && members.iter().all(|member| is_member(member))
}

fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let fits = |part: &str| (1..=LONGEST_PART).contains(&part.len());
    let in_key = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-*/@".contains(&c);
    let in_value = |c: u8| matches!(c, b' '..=b'~') && c != b'=';
    let begins = |key: &str| key.as_bytes()[0].is_ascii_alphanumeric();
    fits(key)
        && fits(value)
        && begins(key)
        && key.bytes().all(in_key)
        && value.bytes().all(in_value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_as_it_came() {
        let trace = TraceContext::parse(PARENT).unwrap();
        assert_eq!(trace.traceparent(), PARENT);
        assert_eq!(trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace.span_id(), "00f067aa0ba902b7");
        assert!(trace.sampled());
        let quiet = TraceContext::parse(&PARENT.replace("-01", "-02")).unwrap();
        assert!(!quiet.sampled());
    }

    #[test]
    fn a_newer_version_is_read_as_far_as_it_is_known() {
        for text in [PARENT.replacen("00", "cc", 1), PARENT.replacen("00", "01", 1) + "-more.of-it"]
        {
            assert_eq!(TraceContext::parse(&text).unwrap().traceparent(), text);
        }
    }

    #[test]
    fn what_is_no_traceparent_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "shorter"),
            ("00-aa-bb-01", "shorter"),
            (&PARENT.to_uppercase(), "lower case"),
            (&PARENT.replace('-', "_"), "four parts"),
            (&PARENT.replace("4bf9", "4bg9"), "hexadecimal"),
            (&PARENT.replacen("00", "ff", 1), "version ff"),
            (&format!("{PARENT}-more"), "55 characters"),
            (&(PARENT.replacen("00", "01", 1) + "more"), "flags"),
            (&(PARENT.replacen("00", "01", 1) + "-a\nb"), "no header"),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", "zeros"),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", "zeros"),
            (&format!(" {PARENT}"), "four parts"),
        ] {
            let error = TraceContext::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_tracestate_goes_along_unless_it_cannot_be_read() {
        let with = |state: &str| TraceContext::parse(PARENT).unwrap().with_state(state);
        let many = |count| vec!["a=b"; count].join(",");
        for good in ["vendor=1", "rojo=00f0, congo=t61rcWkgMzE", "a@b=x y", "b=1,", &many(32)] {
            assert_eq!(with(good).tracestate(), Some(good), "{good}");
        }
        for bad in ["", " , ", "novalue", "A=1", "=1", "a=", "a=b=c", "a=\u{e9}", "a=\n", &many(33)]
        {
            assert_eq!(with(bad).tracestate(), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_never_changed(text in "[0-9a-f-]{0,60}|.{0,80}") {
            if let Ok(trace) = TraceContext::parse(&text) {
                prop_assert_eq!(trace.traceparent(), &text);
                prop_assert_eq!((trace.trace_id().len(), trace.span_id().len()), (32, 16));
            }
            _ = TraceContext::parse(PARENT).unwrap().with_state(&text);
        }
    }
}
