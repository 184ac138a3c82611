//! A file that is written whole or not at all.
//! In: a folder that is open, a name in it, bytes. Out: the file under its name, after it has
//! reached the disk.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use forebay_worker::{JobError, JobResult};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::roots::unwritable;

/// Where a file is to be.
#[derive(Debug)]
pub(crate) struct Place {
    folder: OwnedFd,
    name: OsString,
    path: PathBuf,
    /// Device and number of the file that is there already.
    taken_by: Option<(u64, u64)>,
}

impl Place {
    /// A name in an open folder. Only regular files are ever replaced.
    pub(crate) fn new(folder: OwnedFd, name: &OsStr, path: &Path) -> JobResult<Self> {
        let taken_by = match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => {
                Some((stat.st_dev, stat.st_ino))
            }
            Ok(_) => {
                let path = path.display();
                return Err(JobError::reject(anyhow!("`{path}` is there and no regular file")));
            }
            Err(Errno::NOENT) => None,
            Err(error) => return Err(unwritable(path, &error.into())),
        };
        Ok(Self { folder, name: name.to_owned(), path: path.to_owned(), taken_by })
    }

    /// Whether a file is there already.
    pub(crate) fn is_taken(&self) -> bool {
        self.taken_by.is_some()
    }

    /// Whether this very file is there already, under whatever name it was opened.
    pub(crate) fn is_taken_by(&self, file: &File) -> io::Result<bool> {
        let metadata = file.metadata()?;
        Ok(self.taken_by == Some((metadata.dev(), metadata.ino())))
    }

    /// Writes the file beside its place, then moves it there in one step: whoever looks finds the
    /// old one, or the new one whole, also after a crash.
    pub(crate) fn write(&self, bytes: &[u8]) -> JobResult<()> {
        // A process that is killed here leaves this one behind, which nobody takes for the file.
        let draft = format!(".forebay-{:016x}.part", RandomState::new().hash_one(&self.path));
        let written = self.fill(&draft, bytes);
        if written.is_err() {
            rustix::fs::unlinkat(&self.folder, &draft, AtFlags::empty()).ok();
        }
        written.map_err(|error| unwritable(&self.path, &error))
    }

    fn fill(&self, draft: &str, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, draft, flags, Mode::from_raw_mode(0o666))?;
        let mut file = File::from(file);
        file.write_all(bytes)?;
        file.sync_all()?;
        rustix::fs::renameat(&self.folder, draft, &self.folder, &self.name)?;
        // The new name is on the disk when the folder is. One that may not be listed cannot be
        // asked to; the file itself is safe.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.folder, ".", flags, Mode::empty()) {
            Ok(folder) => File::from(folder).sync_all(),
            Err(_) => Ok(()),
        }
    }
}
