//! Reads a spool file from its beginning to its end, whatever has happened to it.
//! In: bytes. Out: its jobs, what is damaged, and the end of a write that was cut off.

use std::io::{self, BufRead, Read};
use std::ops::Range;

use super::record::{self, HEAD, Kept, LONGEST, SENT, WAIT};

const LONGEST_LINE: u64 = (HEAD + LONGEST + 1) as u64;

/// A piece of the file.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(crate) enum Piece {
    /// A job; the range is its line.
    Job { range: Range<u64>, sent: bool, kept: Box<Kept> },
    /// A line that is no job, or not the one that was written.
    Damaged(Range<u64>),
    /// The last line, without its end: it was never written as a whole.
    Torn(Range<u64>),
}

/// The pieces of a file in order; together they are all of it.
pub(crate) struct Scan<R> {
    reader: R,
    line: Vec<u8>,
    /// How much of the line has been taken.
    taken: usize,
    /// Where the line begins.
    offset: u64,
}

impl<R: BufRead> Scan<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), taken: 0, offset: 0 }
    }

    /// `false`: there is no further line.
    fn next_line(&mut self) -> io::Result<bool> {
        self.offset += self.line.len() as u64;
        self.taken = 0;
        self.line.clear();
        let read = self.reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.line)?;
        Ok(read > 0)
    }

    fn piece(&mut self) -> Piece {
        let begin = self.offset + self.taken as u64;
        let rest = &self.line[self.taken..];
        // After a line end that is damaged the next job stands in the same line.
        if let Some(record) = record::read(rest) {
            self.taken += record.bytes;
            let range = begin..begin + record.bytes as u64;
            return Piece::Job { range, sent: record.sent, kept: Box::new(record.kept) };
        }
        if let Some(next) = next_record(rest) {
            self.taken += next;
            return Piece::Damaged(begin..begin + next as u64);
        }
        let range = begin..begin + rest.len() as u64;
        let ended = rest.ends_with(b"\n") || self.line.len() as u64 == LONGEST_LINE;
        self.taken = self.line.len();
        if ended { Piece::Damaged(range) } else { Piece::Torn(range) }
    }
}

/// Where in a damaged line a job begins whose line end before it is gone. Text inside a payload is no
/// such place: its quotes are escaped, so that it is no JSON.
fn next_record(line: &[u8]) -> Option<usize> {
    let words = line.windows(WAIT.len()).enumerate().skip(1);
    let mut begins = words.filter(|(_, word)| *word == WAIT || *word == SENT);
    begins.find_map(|(at, _)| record::read(&line[at..]).map(|_| at))
}

impl<R: BufRead> Iterator for Scan<R> {
    type Item = io::Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.taken == self.line.len() {
            match self.next_line() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(self.piece()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::kept;
    use super::*;
    use proptest::prelude::*;

    fn pieces(file: &[u8]) -> Vec<Piece> {
        Scan::new(file).map(Result::unwrap).collect()
    }

    fn ids(pieces: &[Piece]) -> Vec<String> {
        let id = |piece: &Piece| match piece {
            Piece::Job { kept, .. } => Some(kept.id.clone()),
            _ => None,
        };
        pieces.iter().filter_map(id).collect()
    }

    fn range(piece: &Piece) -> Range<u64> {
        match piece {
            Piece::Job { range, .. } | Piece::Damaged(range) | Piece::Torn(range) => range.clone(),
        }
    }

    fn file(jobs: &[Kept]) -> (Vec<u8>, Vec<usize>) {
        let mut file = Vec::new();
        let mut ends = vec![0];
        for job in jobs {
            file.extend(record::line(job));
            ends.push(file.len());
        }
        (file, ends)
    }

    fn jobs() -> impl Strategy<Value = Vec<Kept>> {
        proptest::collection::vec(kept(), 1..5).prop_map(|mut jobs| {
            jobs.iter_mut().enumerate().for_each(|(n, job)| job.id = n.to_string());
            jobs
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn cut_off_anywhere_exactly_the_whole_jobs_are_there(jobs in jobs()) {
            let (file, ends) = file(&jobs);
            for cut in 0..=file.len() {
                let found = pieces(&file[..cut]);
                let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
                let expected: Vec<_> = (0..whole).map(|n| n.to_string()).collect();
                prop_assert_eq!(ids(&found), expected, "cut at {}", cut);
                let rest = ends[whole] as u64..cut as u64;
                let torn = (!rest.is_empty()).then_some(Piece::Torn(rest));
                prop_assert_eq!(found.get(whole), torn.as_ref());
                prop_assert!(found.len() <= whole + 1);
            }
        }

        /// One run of bytes becomes something else: the jobs that it does not touch are all found,
        /// no other job comes to be, and every byte is accounted for.
        #[test]
        fn damage_takes_no_neighbour_along(
            jobs in jobs(),
            at in any::<prop::sample::Index>(),
            garbage in proptest::collection::vec(any::<u8>(), 1..60),
        ) {
            let (mut file, ends) = file(&jobs);
            let begin = at.index(file.len());
            let end = file.len().min(begin + garbage.len());
            file[begin..end].copy_from_slice(&garbage[..end - begin]);
            let found = pieces(&file);
            for (n, job) in jobs.iter().enumerate() {
                let untouched = end <= ends[n] || begin >= ends[n + 1];
                if untouched {
                    prop_assert!(ids(&found).contains(&job.id), "job {} of {:?}", n, found);
                }
            }
            for piece in &found {
                if let Piece::Job { kept, .. } = piece {
                    prop_assert!(jobs.contains(kept));
                }
            }
            let mut so_far = 0;
            for piece in &found {
                prop_assert_eq!(range(piece).start, so_far);
                so_far = range(piece).end;
            }
            prop_assert_eq!(so_far, file.len() as u64);
        }
    }

    #[test]
    fn a_line_end_that_is_damaged_takes_no_job_along() {
        let (mut file, ends) = file(&[job("a"), job("b"), job("c")]);
        file[ends[1] - 1] = b'x';
        assert_eq!(ids(&pieces(&file)), ["a", "b", "c"]);
    }

    fn job(id: &str) -> Kept {
        let json = r#"{"id":"","kind":"a.b","queue":"q","namespace":"n","run":"r","published_at":1,"payload":"1"}"#;
        Kept { id: id.to_owned(), ..serde_json::from_str(json).unwrap() }
    }
}
