//! What happened, as it happened: one file for each process, one write for each line.
//! In: events. Out: all of them, by time, whatever became of the process that wrote them.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

/// One line of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Microseconds since the epoch; comparable between the processes of one machine.
    pub(crate) at: u64,
    /// Which process.
    pub(crate) who: String,
    pub(crate) event: Event,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A publisher is about to publish a job.
    Intent { id: String, script: String },
    /// The broker has confirmed it.
    Confirmed { id: String },
    /// The publisher was told that it is not confirmed, and whether it may have arrived.
    Failed { id: String, may_have_arrived: bool, because: String },
    /// A handler has begun.
    Begun { id: String, run: Run },
    /// It has ended: `ok`, `fail`, `reject`, or `dropped` when it was stopped.
    Ended { id: String, run: Run, end: String },
    /// A worker consumes.
    Consuming,
    /// A worker that should consume does not.
    Idle { because: String },
    /// A worker was started.
    Started,
    /// A worker is not there any more, or is about to end.
    Gone { how: String },
    /// A fault begins.
    Struck { what: String },
    /// It is over: from now on the broker can be reached again.
    Healed,
    /// An operator destroyed what was queued: at most so many, beside what was published within
    /// the microseconds that it took.
    Destroyed { at_most: u64, took: u64 },
    /// What was promised is not so.
    Broken { what: String },
}

/// Which run of a job: a second one with the same numbers is the same work once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Run {
    pub(crate) attempt: u32,
    pub(crate) redrives: u32,
    pub(crate) crashes: u32,
}

/// Writes the record of one process.
#[derive(Clone)]
pub(crate) struct Recorder {
    file: Arc<File>,
    who: String,
    /// Where all records of the run lie.
    pub(crate) folder: Arc<Path>,
    /// The machine's clock may be turned while we run; this process's own runs on.
    began: (u64, Instant),
}

impl Recorder {
    pub(crate) fn open(folder: &Path, who: &str) -> anyhow::Result<Self> {
        let path = folder.join(format!("{who}.record"));
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("opening the record {}", path.display()))?;
        let (file, folder, who) = (Arc::new(file), Arc::from(folder), who.to_owned());
        Ok(Self { file, who, folder, began: (now(), Instant::now()) })
    }

    /// Microseconds since the epoch.
    pub(crate) fn now(&self) -> u64 {
        self.began.0 + self.began.1.elapsed().as_micros() as u64
    }

    /// Notes an event now.
    pub(crate) fn note(&self, event: Event) {
        self.note_at(self.now(), event);
    }

    pub(crate) fn note_at(&self, at: u64, event: Event) {
        let line = Entry { at, who: self.who.clone(), event }.to_line();
        // One write, appended as a whole: a process killed in between leaves no half line.
        (&*self.file).write_all(line.as_bytes()).expect("the record can be written");
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64)
}

/// All records of a folder, by time.
pub(crate) fn read_all(folder: &Path) -> anyhow::Result<Vec<Entry>> {
    let mut reader = Reader::new(folder);
    reader.read()?;
    Ok(reader.entries)
}

/// Reads the records of a folder again and again, and each line once.
pub(crate) struct Reader {
    folder: PathBuf,
    /// How far each file was read.
    read: HashMap<PathBuf, u64>,
    entries: Vec<Entry>,
}

impl Reader {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), read: HashMap::new(), entries: Vec::new() }
    }

    /// All that is there by now, by time.
    pub(crate) fn read(&mut self) -> anyhow::Result<&[Entry]> {
        let before = self.entries.len();
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "record") {
                let (mut file, mut text) = (File::open(&path)?, String::new());
                let read = self.read.entry(path).or_default();
                file.seek(SeekFrom::Start(*read))?;
                file.read_to_string(&mut text)?;
                // What is being written in this moment is for the next time.
                let whole = text.rfind('\n').map_or(0, |end| end + 1);
                *read += whole as u64;
                self.entries.extend(text[..whole].lines().filter_map(Entry::of_line));
            }
        }
        if self.entries.len() > before {
            self.entries.sort_by_key(|entry| entry.at);
        }
        Ok(&self.entries)
    }
}

impl Entry {
    pub(crate) fn to_line(&self) -> String {
        let run = |run: &Run| format!("{}\t{}\t{}", run.attempt, run.redrives, run.crashes);
        let event = match &self.event {
            Event::Intent { id, script } => format!("intent\t{id}\t{script}"),
            Event::Confirmed { id } => format!("confirmed\t{id}"),
            Event::Failed { id, may_have_arrived, because } => {
                format!("failed\t{id}\t{may_have_arrived}\t{}", one_line(because))
            }
            Event::Begun { id, run: of } => format!("begun\t{id}\t{}", run(of)),
            Event::Ended { id, run: of, end } => format!("ended\t{id}\t{}\t{end}", run(of)),
            Event::Consuming => "consuming".to_owned(),
            Event::Idle { because } => format!("idle\t{}", one_line(because)),
            Event::Started => "started".to_owned(),
            Event::Gone { how } => format!("gone\t{}", one_line(how)),
            Event::Struck { what } => format!("struck\t{}", one_line(what)),
            Event::Healed => "healed".to_owned(),
            Event::Destroyed { at_most, took } => format!("destroyed\t{at_most}\t{took}"),
            Event::Broken { what } => format!("broken\t{}", one_line(what)),
        };
        format!("{}\t{}\t{event}\n", self.at, self.who)
    }

    /// `None` for what is not a whole line.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let mut parts = line.split('\t');
        let mut next = || parts.next().map(str::to_owned);
        let (at, who, verb) = (next()?.parse().ok()?, next()?, next()?);
        let run = |next: &mut dyn FnMut() -> Option<String>| {
            Some(Run {
                attempt: next()?.parse().ok()?,
                redrives: next()?.parse().ok()?,
                crashes: next()?.parse().ok()?,
            })
        };
        let event = match verb.as_str() {
            "intent" => Event::Intent { id: next()?, script: next()? },
            "confirmed" => Event::Confirmed { id: next()? },
            "failed" => Event::Failed {
                id: next()?,
                may_have_arrived: next()?.parse().ok()?,
                because: next()?,
            },
            "begun" => Event::Begun { id: next()?, run: run(&mut next)? },
            "ended" => Event::Ended { id: next()?, run: run(&mut next)?, end: next()? },
            "consuming" => Event::Consuming,
            "idle" => Event::Idle { because: next()? },
            "started" => Event::Started,
            "gone" => Event::Gone { how: next()? },
            "struck" => Event::Struck { what: next()? },
            "healed" => Event::Healed,
            "destroyed" => {
                Event::Destroyed { at_most: next()?.parse().ok()?, took: next()?.parse().ok()? }
            }
            "broken" => Event::Broken { what: next()? },
            _ => return None,
        };
        Some(Self { at, who, event })
    }
}

impl Event {
    /// The job that it is about.
    pub(crate) fn id(&self) -> Option<&str> {
        match self {
            Self::Intent { id, .. }
            | Self::Confirmed { id }
            | Self::Failed { id, .. }
            | Self::Begun { id, .. }
            | Self::Ended { id, .. } => Some(id),
            _ => None,
        }
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\t', '\n'], " ")
}

#[test]
fn every_event_is_read_as_it_was_written_and_half_a_line_is_not() {
    let (id, run) = ("a-1".to_owned(), Run { attempt: 2, redrives: 1, crashes: 3 });
    let events = [
        Event::Intent { id: id.clone(), script: "quick".into() },
        Event::Confirmed { id: id.clone() },
        Event::Failed { id: id.clone(), may_have_arrived: true, because: "a\tb\nc".into() },
        Event::Begun { id: id.clone(), run },
        Event::Ended { id, run, end: "ok".into() },
        Event::Consuming,
        Event::Idle { because: "cut".into() },
        Event::Started,
        Event::Gone { how: "killed".into() },
        Event::Struck { what: "cut".into() },
        Event::Healed,
        Event::Destroyed { at_most: 9, took: 12 },
        Event::Broken { what: "prefetch".into() },
    ];
    for event in events {
        let line = Entry { at: 7, who: "worker-1".into(), event }.to_line();
        let read = Entry::of_line(line.trim_end_matches('\n')).expect(&line);
        assert_eq!(read.to_line(), line);
    }
    assert_eq!(Entry::of_line("7\tworker-1\tended\ta-1\t2\t1\t3"), None);
    assert_eq!(Entry::of_line("7\tworker-1\tbeg"), None);
}

#[test]
fn each_line_is_read_once_and_half_a_line_when_it_is_whole() {
    let folder = std::env::temp_dir().join(format!("forebay-records-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (path, mut reader) = (folder.join("a.record"), Reader::new(&folder));
    fs::write(&path, "2\ta\thealed\n3\ta\thea").unwrap();
    assert_eq!(reader.read().unwrap().len(), 1);
    fs::write(folder.join("b.record"), "1\tb\tstarted\n").unwrap();
    fs::write(&path, "2\ta\thealed\n3\ta\thealed\n").unwrap();
    let at: Vec<_> = reader.read().unwrap().iter().map(|entry| entry.at).collect();
    assert_eq!((at, reader.read().unwrap().len()), (vec![1, 2, 3], 3));
    fs::remove_dir_all(&folder).unwrap();
}
