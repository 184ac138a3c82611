//! Folders within which jobs may name files.
//! In: the configured folders, a path from a payload. Out: the open file, or a place for a new one,
//! truly within them, whatever links lead there.

#[cfg(feature = "image")]
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use forebay_worker::{JobError, JobResult};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

#[cfg(feature = "image")]
use crate::place::Place;

/// Why no file could be read or written, wherever it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    /// Nothing is open by default.
    #[error("no folder is named whose files may be read or written")]
    None,
    /// A folder that is not there.
    #[error("`{}` is no folder that can be read: {source}", .root.display())]
    Unusable {
        /// The folder.
        root: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A folder that nothing can be written into.
    #[error("`{}` is no folder that can be written to: {source}", .root.display())]
    Unwritable {
        /// The folder.
        root: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Folders, and all below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Roots(Arc<[Root]>);

#[derive(Debug, PartialEq, Eq)]
struct Root {
    /// As configured, made absolute.
    named: PathBuf,
    /// Where it really is.
    real: PathBuf,
}

impl Roots {
    /// # Errors
    /// [`RootsError`] if there is none, or one of them is not there.
    pub(crate) fn new(
        roots: impl IntoIterator<Item = impl Into<PathBuf>>,
    ) -> Result<Self, RootsError> {
        let roots: Result<Vec<_>, _> =
            roots.into_iter().map(|root| Root::of(root.into())).collect();
        match roots? {
            roots if roots.is_empty() => Err(RootsError::None),
            roots => Ok(Self(roots.into())),
        }
    }

    /// The same for writing.
    #[cfg(feature = "image")]
    pub(crate) fn writable(
        roots: impl IntoIterator<Item = impl Into<PathBuf>>,
    ) -> Result<Self, RootsError> {
        let roots = Self::new(roots)?;
        for root in roots.0.iter() {
            rustix::fs::access(&root.real, rustix::fs::Access::WRITE_OK).map_err(|error| {
                RootsError::Unwritable { root: root.named.clone(), source: error.into() }
            })?;
        }
        Ok(roots)
    }

    /// Opens a regular file if it is within a root. What is missing, outside or of another sort is
    /// rejected; what cannot be read now is for another try.
    pub(crate) fn open(&self, path: &Path) -> JobResult<File> {
        // By its name first: whether something exists elsewhere is nobody's business.
        if !self.names(path) {
            return Err(outside(path));
        }
        let real = fs::canonicalize(path).map_err(|error| unreadable(path, &error))?;
        let (root, below) = self.holding(&real).ok_or_else(|| outside(path))?;
        // Without waiting for the writer of a pipe.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match (below.parent(), below.file_name()) {
            (Some(folder), Some(name)) => root
                .descend(folder)
                .and_then(|folder| rustix::fs::openat(folder, name, flags, Mode::empty())),
            _ => return Err(no_regular_file(path)), // the root itself
        };
        let file = File::from(opened.map_err(|error| match error {
            _ if is_new_link(error) => outside(path),
            Errno::NXIO => no_regular_file(path), // a socket
            _ => unreadable(path, &error.into()),
        })?);
        if !file.metadata()?.is_file() {
            return Err(no_regular_file(path));
        }
        Ok(file)
    }

    /// A place for a new file within a root. Folders missing below the root are created.
    #[cfg(feature = "image")]
    pub(crate) fn place(&self, path: &Path) -> JobResult<Place> {
        let outside = || {
            JobError::reject(anyhow!(
                "`{}` is outside the folders that may be written to",
                path.display()
            ))
        };
        let name = path.file_name().filter(|_| self.names(path)).ok_or_else(outside)?;
        let mut missing = Vec::new();
        let mut folder = path.parent().unwrap_or(path);
        let real = loop {
            match fs::canonicalize(folder) {
                Ok(real) => break real,
                // The part below the root is ours to create, a root that has gone is not.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_root(folder) => {
                    missing.extend(folder.file_name());
                    folder = folder.parent().unwrap_or(folder);
                }
                Err(error) => return Err(unwritable(path, &error)),
            }
        };
        let (root, below) = self.holding(&real).ok_or_else(outside)?;
        let opened = root.descend(below).and_then(|mut folder| {
            for part in missing.iter().rev() {
                folder = create(&folder, part)?;
            }
            Ok(folder)
        });
        let folder = opened.map_err(|error| match error {
            _ if is_new_link(error) => outside(),
            _ => unwritable(path, &error.into()),
        })?;
        Place::new(folder, name, path)
    }

    fn names(&self, path: &Path) -> bool {
        self.0.iter().any(|root| root.names(path))
    }

    #[cfg(feature = "image")]
    fn is_root(&self, path: &Path) -> bool {
        self.0.iter().any(|root| path == root.named || path == root.real)
    }

    /// The root that a path without links is in, and the way down from there.
    fn holding<'p>(&self, real: &'p Path) -> Option<(&Root, &'p Path)> {
        self.0.iter().find_map(|root| Some((root, real.strip_prefix(&root.real).ok()?)))
    }
}

impl Root {
    fn of(named: PathBuf) -> Result<Self, RootsError> {
        let real = fs::canonicalize(&named).and_then(|real| {
            // Whether it is a folder, and may be looked into.
            fs::read_dir(&real)?;
            Ok((std::path::absolute(&named)?, real))
        });
        match real {
            Ok((named, real)) => Ok(Self { named, real }),
            Err(source) => Err(RootsError::Unusable { root: named, source }),
        }
    }

    fn names(&self, path: &Path) -> bool {
        let climbs = path.components().any(|part| part == Component::ParentDir);
        !climbs && (path.starts_with(&self.named) || path.starts_with(&self.real))
    }

    /// Opens a folder below, step by step and through no link: the way was free of them a moment
    /// ago, and one that is met now was put there to lead us out.
    fn descend(&self, below: &Path) -> rustix::io::Result<OwnedFd> {
        let mut folder = rustix::fs::openat(CWD, &self.real, FOLDER, Mode::empty())?;
        for part in below.components() {
            folder = rustix::fs::openat(&folder, part.as_os_str(), FOLDER, Mode::empty())?;
        }
        Ok(folder)
    }
}

/// To go through a folder takes no right to list it, where the system can tell the two apart.
#[cfg(target_os = "linux")]
const FOLDER: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
#[cfg(not(target_os = "linux"))]
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[cfg(feature = "image")]
fn create(folder: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    rustix::fs::openat(folder, name, FOLDER, Mode::empty())
}

fn is_new_link(error: Errno) -> bool {
    matches!(error, Errno::LOOP | Errno::NOTDIR)
}

fn outside(path: &Path) -> JobError {
    JobError::reject(anyhow!("`{}` is outside the folders that may be read", path.display()))
}

fn no_regular_file(path: &Path) -> JobError {
    JobError::reject(anyhow!("`{}` is no regular file", path.display()))
}

fn unreadable(path: &Path, error: &io::Error) -> JobError {
    let gone = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "; let the worker's user read it",
        _ => "",
    };
    let cause = anyhow!("cannot open `{}`: {error}{remedy}", path.display());
    if gone { JobError::reject(cause) } else { JobError::retry(cause) }
}

/// Only a name that can never be is the job's fault.
#[cfg(feature = "image")]
pub(crate) fn unwritable(path: &Path, error: &io::Error) -> JobError {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "; let the worker's user write to its folder",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room for it",
        io::ErrorKind::FileTooLarge => "; raise the limit on the size of files (ulimit -f)",
        io::ErrorKind::ReadOnlyFilesystem => "; have its file system mounted for writing",
        _ => "",
    };
    let never = matches!(
        error.kind(),
        io::ErrorKind::InvalidFilename | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
    );
    let cause = anyhow!("cannot write `{}`: {error}{remedy}", path.display());
    if never { JobError::reject(cause) } else { JobError::retry(cause) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    #[test]
    fn the_way_down_leads_through_no_link() {
        let (inside, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        fs::create_dir_all(inside.path().join("a/b")).unwrap();
        symlink(outside.path(), inside.path().join("a/link")).unwrap();
        let root = Root::of(inside.path().to_owned()).unwrap();
        assert!(root.descend(Path::new("a/b")).is_ok());
        // As if it had been put there after the way was looked up.
        let error = root.descend(Path::new("a/link")).unwrap_err();
        assert!(is_new_link(error), "{error}");
        assert!(is_new_link(root.descend(Path::new("a/link/c")).unwrap_err()));
    }

    #[cfg(feature = "image")]
    #[test]
    fn missing_folders_are_created_below_a_root_and_a_missing_root_is_not() {
        let all = TempDir::new().unwrap();
        let root = all.path().join("root");
        fs::create_dir(&root).unwrap();
        let roots = Roots::writable([&root]).unwrap();
        roots.place(&root.join("a/b/c")).unwrap().write(b"one").unwrap();
        assert_eq!(fs::read(root.join("a/b/c")).unwrap(), b"one");
        fs::remove_dir_all(&root).unwrap();
        let error = roots.place(&root.join("a/b/c")).unwrap_err();
        assert!(error.message().contains("No such file"), "{error}");
        assert!(format!("{error:?}").contains("Retry"));
        assert!(!root.exists());
    }

    #[cfg(feature = "image")]
    #[test]
    fn what_a_person_can_mend_is_tried_again_and_says_how() {
        let cases = [
            (Errno::NOSPC, "make room", "Retry"),
            (Errno::DQUOT, "make room", "Retry"),
            (Errno::FBIG, "ulimit -f", "Retry"),
            (Errno::ACCESS, "let the worker's user write", "Retry"),
            (Errno::ROFS, "mounted for writing", "Retry"),
            (Errno::IO, "cannot write `/a/b`", "Retry"),
            (Errno::NAMETOOLONG, "cannot write `/a/b`", "Reject"),
            (Errno::NOTDIR, "cannot write `/a/b`", "Reject"),
        ];
        for (error, words, then) in cases {
            let error = unwritable(Path::new("/a/b"), &error.into());
            assert!(error.message().contains(words), "{error}");
            assert!(format!("{error:?}").contains(then), "{error:?}");
        }
        let error = unreadable(Path::new("/a/b"), &Errno::ACCESS.into());
        assert!(error.message().contains("let the worker's user read it"), "{error}");
    }
}
