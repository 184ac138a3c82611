//! Keeps the jobs of a bulk publish that the broker does not take, many with one write.
//! In: jobs by their line. Out: lines whose jobs are on the disk.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::folder::Folder;
use super::gate::Gate;
use super::record::Kept;
use super::trouble;
use crate::exit::Stop;

/// One write for so many jobs, or so many bytes, or after so long.
const MOST_JOBS: usize = 1_000;
const MOST_BYTES: usize = 8 * 1024 * 1024;
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// The spool of a bulk publish.
pub(crate) struct Keeper {
    pub(crate) folder: Folder,
    pub(crate) gate: Gate,
    /// Why the last job was not taken.
    trouble: Option<anyhow::Error>,
    batch: Vec<Kept>,
    lines: Vec<u64>,
    bytes: usize,
    due: Option<Instant>,
}

impl Keeper {
    pub(crate) fn create(path: &Path) -> Result<Self, Stop> {
        Ok(Self {
            folder: Folder::create(path)?,
            gate: Gate::default(),
            trouble: None,
            batch: Vec::new(),
            lines: Vec::new(),
            bytes: 0,
            due: None,
        })
    }

    /// The broker did not take the job in this line.
    pub(crate) fn shut(&mut self, line: u64, trouble: anyhow::Error) {
        self.gate.shut(line);
        self.trouble = Some(trouble);
    }

    /// Takes a job in. `true`: it is time to write.
    pub(crate) fn add(&mut self, line: u64, job: Kept) -> bool {
        self.bytes += job.payload.len();
        self.batch.push(job);
        self.lines.push(line);
        self.due.get_or_insert_with(|| Instant::now() + LONGEST_WAIT);
        self.batch.len() >= MOST_JOBS || self.bytes >= MOST_BYTES
    }

    /// When to write, if there is anything.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes what was taken in, and returns its lines.
    ///
    /// # Errors
    /// None of these jobs is kept.
    pub(crate) fn write(&mut self) -> anyhow::Result<Vec<u64>> {
        (self.bytes, self.due) = (0, None);
        let (batch, lines) = (std::mem::take(&mut self.batch), std::mem::take(&mut self.lines));
        if batch.is_empty() {
            return Ok(lines);
        }
        match self.folder.append(&batch) {
            Ok(()) => Ok(lines),
            Err(why) => Err(match self.trouble.take() {
                Some(trouble) => trouble.context(format!("jobs are not spooled either: {why}")),
                None => why.into(),
            }),
        }
    }

    /// Why jobs were kept, in words.
    pub(crate) fn because(&self) -> String {
        self.trouble.as_ref().map_or_else(String::new, trouble::because)
    }
}
