//! Reads a file or standard input line by line, on a thread of its own.
//! In: a path, `-` for standard input. Out: numbered lines, as they are asked for: a file of any
//! size takes the memory of a few lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::Path;
use std::thread;

use tokio::sync::mpsc;

use crate::exit::Stop;
use crate::screen;

/// The payload limit of a producer: a longer line cannot be a job.
const LONGEST: usize = 16 * 1024 * 1024;
/// Read ahead so many lines.
const AHEAD: usize = 16;

/// A line, counted from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) number: u64,
    /// Its length in the file, for the progress bar.
    pub(crate) bytes: u64,
    pub(crate) content: Content,
}

/// What stands in a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text(String),
    /// It cannot be a job; a sentence says why.
    Bad(String),
    /// Reading ended here with an error.
    Broken(String),
}

/// Lines as they are read, and how many bytes there will be, if that is known.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) next: mpsc::Receiver<Line>,
    pub(crate) total: Option<u64>,
}

/// Starts to read.
pub(crate) fn open(path: &Path) -> Result<Lines, Stop> {
    let (give, next) = mpsc::channel(AHEAD);
    let mut total = None;
    let input: Box<dyn Read + Send> = if path == Path::new("-") {
        if io::stdin().is_terminal() {
            screen::aside("reading lines from the terminal; end with Ctrl-D");
        }
        Box::new(io::stdin())
    } else {
        let unusable = |why| Stop::Usage(format!("cannot read {}: {why}", path.display()));
        let file = File::open(path).map_err(unusable)?;
        let about = file.metadata().map_err(unusable)?;
        if about.is_dir() {
            return Err(Stop::Usage(format!("cannot read {}: it is a directory", path.display())));
        }
        total = about.is_file().then_some(about.len());
        Box::new(file)
    };
    // Not a task: a read that blocks for ever must not keep the process from ending.
    thread::spawn(move || {
        let mut reader = BufReader::with_capacity(64 * 1024, input);
        for number in 1.. {
            let Some(line) = read(&mut reader, number, LONGEST) else {
                break;
            };
            let broken = matches!(line.content, Content::Broken(_));
            if give.blocking_send(line).is_err() || broken {
                break;
            }
        }
    });
    Ok(Lines { next, total })
}

/// The next line without its end; `None` after the last.
fn read(reader: &mut impl BufRead, number: u64, longest: usize) -> Option<Line> {
    let mut line = Vec::new();
    // One more than fits, and its line end.
    let most = longest as u64 + 2;
    let taken = reader.by_ref().take(most).read_until(b'\n', &mut line);
    let mut bytes = line.len() as u64;
    let content = match taken {
        Ok(0) => return None,
        Err(error) => Content::Broken(error.to_string()),
        Ok(_) => {
            let whole = line.ends_with(b"\n");
            if whole {
                line.pop();
                line.pop_if(|last| *last == b'\r');
            }
            if line.len() <= longest {
                text(line, number)
            } else {
                let mut rest = 0;
                let skipped = if whole { Ok(()) } else { skip_line(reader, &mut rest) };
                bytes += rest;
                match skipped {
                    Ok(()) => Content::Bad(format!("it is longer than {longest} bytes")),
                    Err(error) => Content::Broken(error.to_string()),
                }
            }
        }
    };
    Some(Line { number, bytes, content })
}

fn text(line: Vec<u8>, number: u64) -> Content {
    match String::from_utf8(line) {
        // Some editors begin a file with a byte order mark.
        Ok(text) if number == 1 && text.starts_with('\u{feff}') => {
            Content::Text(text['\u{feff}'.len_utf8()..].to_owned())
        }
        Ok(text) => Content::Text(text),
        Err(error) => {
            let at = error.utf8_error().valid_up_to() + 1;
            Content::Bad(format!("it is not UTF-8 at byte {at}"))
        }
    }
}

fn skip_line(reader: &mut impl BufRead, skipped: &mut u64) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(buffer.len(), |end| end + 1);
        let finished = end.is_some() || buffer.is_empty();
        reader.consume(taken);
        *skipped += taken as u64;
        if finished {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut input: &[u8], longest: usize) -> Vec<Content> {
        (1..)
            .map_while(|number| read(&mut input, number, longest))
            .map(|line| line.content)
            .collect()
    }

    fn text(text: &str) -> Content {
        Content::Text(text.to_owned())
    }

    #[test]
    fn lines_come_without_their_ends_and_the_last_may_have_none() {
        assert_eq!(all(b"a\r\n\n b \nc", 9), [text("a"), text(""), text(" b "), text("c")]);
        assert_eq!(all(b"", 9), []);
        assert_eq!(all("\u{feff}a\n\u{feff}b".as_bytes(), 9), [text("a"), text("\u{feff}b")]);
    }

    #[test]
    fn a_bad_line_does_not_disturb_the_next() {
        let found = all(b"abcd\nabcde\nabcdefghijkl\n\xff\nok", 4);
        let too_long = || Content::Bad("it is longer than 4 bytes".to_owned());
        let not_text = Content::Bad("it is not UTF-8 at byte 1".to_owned());
        assert_eq!(found, [text("abcd"), too_long(), too_long(), not_text, text("ok")]);
    }

    #[test]
    fn bytes_add_up_to_the_file() {
        let mut input: &[u8] = b"abc\nabcdefghijkl\n\nx";
        let length = input.len() as u64;
        let lines = (1..).map_while(|number| read(&mut input, number, 4));
        assert_eq!(lines.map(|line| line.bytes).sum::<u64>(), length);
    }
}
