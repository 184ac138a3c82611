//! What a function says, kept within bounds.
//! In: chunks of bytes. Out: the whole if it is small enough, else its end; or its lines.

use bytes::Bytes;
use forebay_worker::Output;

/// What is kept of text that is no JSON.
pub(crate) const TAIL: usize = 4 * 1024;

/// What is recorded of standard error: a failure holds 4 kB, and its end would be cut.
pub(crate) const STDERR: usize = TAIL - 512;

/// The largest result that is kept.
pub(crate) const RESULT: usize = 16 * 1024 * 1024;

/// The longest line of progress that is read.
const LINE: usize = 64 * 1024;

/// A text up to a limit; beyond it only its last 4 kB.
#[derive(Debug)]
pub(crate) struct Capture {
    limit: usize,
    kept: Vec<u8>,
    cut: bool,
}

impl Capture {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, kept: Vec::new(), cut: false }
    }

    /// Keeps the tail only, however short the text.
    pub(crate) fn tail_only() -> Self {
        Self::new(TAIL)
    }

    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.kept.extend_from_slice(chunk);
        if self.kept.len() > self.limit {
            self.cut = true;
            self.kept.drain(..self.kept.len() - TAIL);
            // The rest stays small: give the large buffer back.
            self.kept.shrink_to(2 * TAIL);
            self.limit = 2 * TAIL;
        }
    }

    /// Whether the beginning was dropped.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// At most the last `most` bytes (of 4 kB) as text, without half of a character.
    pub(crate) fn tail(&self, most: usize) -> String {
        let begin = self.kept.len().saturating_sub(most);
        let mut end = &self.kept[begin..];
        if self.cut || begin > 0 {
            let rest = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
            let cut = end.iter().take(3).take_while(|byte| rest(byte)).count();
            end = &end[cut..];
        }
        String::from_utf8_lossy(end).trim().to_owned()
    }

    /// JSON is the result as it stands; other text becomes a JSON string of its tail; nothing is
    /// no result.
    pub(crate) fn into_output(self) -> Output {
        if !self.cut && serde_json::from_slice::<serde::de::IgnoredAny>(&self.kept).is_ok() {
            return Output::from_json(Bytes::from(self.kept));
        }
        let tail = self.tail(TAIL);
        if tail.is_empty() {
            return Output::none();
        }
        Output::from_json(serde_json::Value::String(tail).to_string().into_bytes())
    }
}

/// Cuts chunks into lines; a line of more than 64 kB is skipped.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    line: Vec<u8>,
    skipping: bool,
}

impl Lines {
    /// Hands every line that ends in `chunk` to `each`.
    pub(crate) fn push(&mut self, chunk: &[u8], mut each: impl FnMut(&[u8])) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            self.skipping |= self.line.len() + text.len() > LINE;
            if !self.skipping {
                self.line.extend_from_slice(text);
            }
            if ends {
                self.end(&mut each);
            }
        }
    }

    /// Hands out the last line, which may lack its newline.
    pub(crate) fn end(&mut self, mut each: impl FnMut(&[u8])) {
        if !self.skipping && !self.line.is_empty() {
            each(&self.line);
        }
        self.line.clear();
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(text: &[u8]) -> Option<String> {
        let mut capture = Capture::new(RESULT);
        capture.push(text);
        let output = capture.into_output();
        output.json().map(|json| String::from_utf8(json.to_vec()).unwrap())
    }

    #[test]
    fn json_is_the_result_and_other_text_a_string() {
        assert_eq!(output(b"{\"pages\": 3}\n").unwrap().trim(), "{\"pages\": 3}");
        assert_eq!(output(b"null").unwrap(), "null");
        assert_eq!(output(b" done \n").unwrap(), "\"done\"");
        assert_eq!(output(b"{\"pages\": 3} and more").unwrap(), "\"{\\\"pages\\\": 3} and more\"");
        assert_eq!(output(b"\n \n"), None);
        assert_eq!(output(b""), None);
    }

    #[test]
    fn a_text_beyond_the_limit_keeps_its_end_and_little_memory() {
        let mut capture = Capture::new(RESULT);
        for number in 0..300_000 {
            capture.push(format!("[{number:0>90}]\n").as_bytes());
        }
        assert!(capture.is_cut() && capture.kept.capacity() <= 8 * TAIL);
        assert!(capture.tail(TAIL).ends_with("299999]"), "{}", capture.tail(TAIL));
        assert!(capture.tail(TAIL).len() <= TAIL);
    }

    #[test]
    fn a_tail_begins_with_a_whole_character() {
        let mut capture = Capture::tail_only();
        capture.push("é".repeat(TAIL).as_bytes());
        capture.push(b"x");
        assert!(!capture.tail(TAIL).contains('\u{fffd}'));
        assert!(capture.tail(TAIL).ends_with("éx"));
    }

    #[test]
    fn lines_are_found_across_chunks_and_long_ones_skipped() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        let long = [b'x'; LINE + 1];
        for chunk in [&b"one\ntw"[..], b"o\n\n", &long, &long, b"end\nthree\nfour"] {
            lines.push(chunk, |line| found.push(String::from_utf8(line.to_vec()).unwrap()));
        }
        lines.end(|line| found.push(String::from_utf8(line.to_vec()).unwrap()));
        assert_eq!(found, ["one", "two", "three", "four"]);
    }
}
