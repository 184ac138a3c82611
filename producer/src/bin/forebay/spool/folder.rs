//! The folder that a spool lives in: its files, their locks, and what makes them last.
//! In: jobs to keep. Out: they are on the disk before anybody is told so; what a crash or a bad disk
//! has left behind is set right before it is read.
//!
//! Two locks: `lock` for each change of the file, held for moments, and `flush.lock` for whoever
//! sends its jobs. So a job can be added while others are sent.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tokio::time;

use super::record::{self, Kept, SENT};
use super::scan::{Piece, Scan};
use crate::exit::Stop;
use crate::screen;

const JOBS: &str = "jobs-v1.spool";
const REWRITTEN: &str = "jobs-v1.new";
const DAMAGED: &str = "jobs-v1.damaged";
const LOCK: &str = "lock";
const FLUSH_LOCK: &str = "flush.lock";
/// A change takes milliseconds; the rewriting of a large file takes seconds.
const CHANGE: Duration = Duration::from_secs(60);

/// A spool.
pub(crate) struct Folder {
    path: PathBuf,
}

/// A lock on one of the folder's files; the system takes it back when the process ends.
pub(crate) struct Locked {
    _file: File,
}

/// Marks jobs as sent, in place.
pub(crate) struct Marker {
    file: File,
}

impl Folder {
    /// The spool in a folder, which is made if it is not there, for its owner alone.
    ///
    /// # Errors
    /// One that tells before anything is published that nothing could be kept here.
    pub(crate) fn create(path: &Path) -> Result<Self, Stop> {
        let made = Self { path: path.to_owned() }.make();
        made.map_err(|error| Stop::Usage(format!("cannot use --spool {}: {error}", quoted(path))))
    }

    /// The spool in a folder that has to be there.
    pub(crate) fn open(path: &Path) -> Result<Self, Stop> {
        if path.is_dir() {
            return Ok(Self { path: path.to_owned() });
        }
        let path = quoted(path);
        Err(Stop::Usage(format!(
            "there is no spool in {path}: `forebay publish --spool {path}` makes it when it is \
             first used, or the name is wrong"
        )))
    }

    fn make(self) -> io::Result<Self> {
        if !self.path.is_dir() {
            let mut builder = fs::DirBuilder::new();
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(&self.path)?;
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            sync_folder(parent.unwrap_or(Path::new(".")))?;
        }
        match private().create(true).append(true).open(self.path.join(LOCK)) {
            // As long as the broker takes the job there is nothing to write.
            Err(error) if is_full(&error) => Ok(self),
            opened => opened.map(|_| self),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where jobs lie, for messages.
    pub(crate) fn file(&self) -> PathBuf {
        self.path.join(JOBS)
    }

    /// What was set aside because it is damaged: where, and how many bytes.
    pub(crate) fn set_aside(&self) -> Option<(PathBuf, u64)> {
        let file = self.path.join(DAMAGED);
        let bytes = fs::metadata(&file).ok()?.len();
        Some((file, bytes))
    }

    /// Whether no job waits. A file that is there holds at least one: whoever sends the last
    /// removes it.
    pub(crate) fn is_empty(&self) -> bool {
        fs::metadata(self.file()).is_ok_and(|file| file.len() == 0) || !self.file().exists()
    }

    /// Keeps jobs: returns when they are on the disk, all of them. After an error none of them is
    /// kept.
    ///
    /// # Errors
    /// What kept the disk from taking them, with the file and the remedy.
    pub(crate) fn append(&self, jobs: &[Kept]) -> Result<(), Stop> {
        let _locked = self.lock_for_a_change()?;
        let lines: Vec<u8> = jobs.iter().flat_map(record::line).collect();
        self.append_lines(&lines).map_err(|error| unwritable(&self.file(), &error))
    }

    fn append_lines(&self, lines: &[u8]) -> io::Result<()> {
        let mut file = private().create(true).read(true).append(true).open(self.file())?;
        self.cut_torn_end(&mut file)?;
        let before = file.metadata()?.len();
        let mut written = file.write_all(lines).and_then(|()| file.sync_all());
        if written.is_ok() && before == 0 {
            written = sync_folder(&self.path);
        }
        if written.is_err() {
            // Nobody is told that they are kept: they must not be sent either.
            _ = file.set_len(before).and_then(|()| file.sync_all());
        }
        written
    }

    /// Removes the end of a write that was cut off. Only a whole file ends with a line end.
    fn cut_torn_end(&self, file: &mut File) -> io::Result<()> {
        let length = file.metadata()?.len();
        let mut last = [b'\n'];
        if length > 0 {
            file.seek(SeekFrom::Start(length - 1))?;
            file.read_exact(&mut last)?;
        }
        if last == [b'\n'] {
            return Ok(());
        }
        file.rewind()?;
        for piece in Scan::new(BufReader::new(&*file)) {
            if let Piece::Torn(range) = piece? {
                file.set_len(range.start)?;
                file.sync_all()?;
                screen::note(format_args!(
                    "warning: the last {} of {} were cut off: a write that did not come to its \
                     end, of jobs that were never said to be spooled",
                    screen::count(range.end - range.start, "byte", "bytes"),
                    self.file().display()
                ));
            }
        }
        Ok(())
    }

    /// The pieces of the file as it is now; none if there is no file. What somebody else writes
    /// at this moment is not among them: it may be taken back.
    pub(crate) fn scan(&self) -> Result<Scan<Box<dyn BufRead>>, Stop> {
        let _locked = self.lock_for_a_change()?;
        self.scan_locked()
    }

    /// The same for who holds the lock.
    fn scan_locked(&self) -> Result<Scan<Box<dyn BufRead>>, Stop> {
        let opened = File::open(self.file()).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((length, file)) => {
                let reader = BufReader::with_capacity(256 * 1024, file.take(length));
                Ok(Scan::new(Box::new(reader)))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Ok(Scan::new(Box::new(io::empty())))
            }
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    pub(crate) fn unreadable(&self, error: &io::Error) -> Stop {
        Stop::Failed(format!("cannot read {}: {error}", self.file().display()))
    }

    pub(crate) fn marker(&self) -> Result<Marker, Stop> {
        let opened = OpenOptions::new().write(true).open(self.file());
        let file = opened.map_err(|error| unwritable(&self.file(), &error))?;
        Ok(Marker { file })
    }

    /// Sets right what a crash or a bad disk has left behind: the end of a write that was cut off
    /// goes, what is damaged is set aside, and both are named.
    pub(crate) fn repair(&self) -> Result<(), Stop> {
        let _locked = self.lock_for_a_change()?;
        let failed = |error: io::Error| unwritable(&self.file(), &error);
        match private().read(true).append(true).open(self.file()) {
            Ok(mut file) => self.cut_torn_end(&mut file).map_err(failed)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.unreadable(&error)),
        }
        let mut damaged = Vec::new();
        for piece in self.scan_locked()? {
            if let Piece::Damaged(range) = piece.map_err(|error| self.unreadable(&error))? {
                damaged.push(range);
            }
        }
        if damaged.is_empty() {
            return Ok(());
        }
        let moved = self.move_damaged(&damaged).and_then(|()| self.rewrite(&damaged));
        if let Err(error) = moved {
            // They stay where they are, and nobody's way.
            let error = unwritable(&self.path.join(DAMAGED), &error);
            screen::note(format_args!("warning: damaged jobs are not set aside: {error}"));
        }
        Ok(())
    }

    fn move_damaged(&self, damaged: &[Range<u64>]) -> io::Result<()> {
        let mut from = File::open(self.file())?;
        let aside = self.path.join(DAMAGED);
        let mut to = private().create(true).append(true).open(&aside)?;
        for Range { start, end } in damaged {
            from.seek(SeekFrom::Start(*start))?;
            let mut bytes = vec![0; (end - start) as usize];
            from.read_exact(&mut bytes)?;
            to.write_all(&bytes)?;
            let id = claimed_id(&bytes).map_or_else(String::new, |id| format!(", job {id}"));
            screen::note(format_args!(
                "warning: {} at byte {start} of {} are damaged{id}: moved to {}, and not sent",
                screen::count(end - start, "byte", "bytes"),
                self.file().display(),
                aside.display()
            ));
        }
        to.sync_all()?;
        sync_folder(&self.path)
    }

    /// Gives the room of sent jobs back, once it is worth the writing. Returns how many jobs wait.
    pub(crate) fn tidy(&self) -> Result<u64, Stop> {
        let _locked = self.lock_for_a_change()?;
        let (mut left, mut waiting, mut sent) = (0, 0, 0);
        for piece in self.scan_locked()? {
            if let Piece::Job { range, sent: done, .. } =
                piece.map_err(|error| self.unreadable(&error))?
            {
                let bytes = range.end - range.start;
                left += u64::from(!done);
                *(if done { &mut sent } else { &mut waiting }) += bytes;
            }
        }
        if sent > 0
            && sent >= waiting
            && let Err(error) = self.rewrite(&[])
        {
            // Not lost, only larger than need be: they are marked.
            screen::note(format_args!("warning: {}", unwritable(&self.file(), &error)));
        }
        Ok(left)
    }

    /// Puts a new file in the place of the old one, without jobs that are sent and without what
    /// lies in `except`. If that is all of it there is no file.
    fn rewrite(&self, except: &[Range<u64>]) -> io::Result<()> {
        let (file, new) = (self.file(), self.path.join(REWRITTEN));
        let mut stay = Vec::new();
        for piece in Scan::new(BufReader::new(File::open(&file)?)) {
            match piece? {
                Piece::Job { sent: true, .. } => {}
                Piece::Job { range, .. } | Piece::Damaged(range) | Piece::Torn(range) => {
                    stay.push(range);
                }
            }
        }
        stay.retain(|range| !except.contains(range));
        if stay.is_empty() {
            fs::remove_file(&file)?;
        } else {
            let mut to = private().create(true).write(true).truncate(true).open(&new)?;
            let copied = copy(&file, &stay, &mut to).and_then(|()| to.sync_all());
            copied.inspect_err(|_| _ = fs::remove_file(&new))?;
            fs::rename(&new, &file)?;
        }
        sync_folder(&self.path)
    }

    /// The right to send, at most until `until`; `None`: another process has it.
    pub(crate) async fn lock_for_sending(
        &self,
        until: time::Instant,
    ) -> Result<Option<Locked>, Stop> {
        let path = self.path.join(FLUSH_LOCK);
        let mut said = false;
        loop {
            if let Some(locked) = try_lock(&path)? {
                return Ok(Some(locked));
            }
            if time::Instant::now() >= until {
                return Ok(None);
            }
            if !said {
                let folder = self.path.display();
                screen::aside(format_args!("another process sends the jobs of {folder}…"));
                said = true;
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn lock_for_a_change(&self) -> Result<Locked, Stop> {
        let (path, until) = (self.path.join(LOCK), Instant::now() + CHANGE);
        loop {
            if let Some(locked) = try_lock(&path)? {
                return Ok(locked);
            }
            if Instant::now() >= until {
                let path = path.display();
                let why = format!("another process has {path} locked for more than a minute");
                return Err(Stop::Failed(why));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Marker {
    /// Notes that the broker has confirmed the job whose line begins there.
    pub(crate) fn sent(&mut self, at: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(at))?;
        self.file.write_all(SENT)
    }
}

fn copy(from: &Path, ranges: &[Range<u64>], to: &mut File) -> io::Result<()> {
    let mut from = BufReader::new(File::open(from)?);
    let mut to = BufWriter::new(to);
    let mut at = 0;
    for Range { start, end } in ranges {
        // Not `seek`, which would throw the buffer away for each job.
        from.seek_relative((start - at) as i64)?;
        io::copy(&mut from.by_ref().take(end - start), &mut to)?;
        at = *end;
    }
    to.flush()
}

/// What an error of a file means to whoever reads it.
pub(crate) fn unwritable(path: &Path, error: &io::Error) -> Stop {
    let remedy = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; make room for it",
        ErrorKind::FileTooLarge => "; raise the limit on the size of files (ulimit -f)",
        ErrorKind::PermissionDenied => "; let this user write there",
        ErrorKind::ReadOnlyFilesystem => "; have its file system mounted for writing",
        _ => "",
    };
    Stop::Failed(format!("cannot write {}: {error}{remedy}", path.display()))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn try_lock(path: &Path) -> Result<Option<Locked>, Stop> {
    let opened = private().create(true).append(true).open(path);
    let file = opened.map_err(|error| unwritable(path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Locked { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            let path = path.display();
            Err(Stop::Failed(format!(
                "cannot lock {path}: {error}; keep the spool on a local disk"
            )))
        }
    }
}

/// For its owner alone: jobs hold what they hold.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A file that was made, renamed or removed lasts once its folder is on the disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

fn quoted(path: &Path) -> String {
    screen::quoted(&path.display().to_string())
}

/// The id in a damaged line, if it can still be read.
fn claimed_id(bytes: &[u8]) -> Option<String> {
    const BEFORE: &[u8] = b"{\"id\":\"";
    let begin = bytes.windows(BEFORE.len()).position(|part| part == BEFORE)? + BEFORE.len();
    let length = bytes[begin..].iter().take(256).position(|byte| *byte == b'"')?;
    let id = std::str::from_utf8(&bytes[begin..begin + length]).ok()?;
    Some(screen::printable(id))
}
