//! `file.digest`: the SHA-256 of a file, the built-in function to begin with.
//! In: `{"path": "/srv/files/a.pdf"}`. Out: `{"path": …, "sha256": …, "bytes": …}`, for files
//! within the configured folders only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use bytes::Bytes;
use forebay_worker::{Context, JobError, JobResult, Output};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Digests files within given folders.
///
/// A job names a file by its absolute path. A missing file, a path outside the folders, by `..` or
/// by a symbolic link too, and anything but a regular file make the job a dead letter; an error
/// while reading is retried.
///
/// ```
/// use forebay_handlers::FileDigest;
/// use forebay_worker::{HandlerOptions, QueueOptions, Worker};
///
/// let digest = FileDigest::new(["/tmp"])?;
/// let worker = Worker::builder(())
///     .queue("default", QueueOptions::new())
///     .handle_raw(FileDigest::NAME, HandlerOptions::new(), digest.handler())
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct FileDigest {
    roots: Arc<[Root]>,
}

/// Why no file could be read, wherever it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    /// Nothing is open by default.
    #[error("no folder is named whose files may be read")]
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
}

#[derive(Debug, PartialEq, Eq)]
struct Root {
    /// As configured, made absolute.
    named: PathBuf,
    /// Where it really is.
    real: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Job {
    path: PathBuf,
}

#[derive(Debug, Serialize)]
struct Digested<'a> {
    path: &'a Path,
    sha256: String,
    bytes: u64,
}

impl FileDigest {
    /// What `use = "…"` names in a manifest, and the kind that suggests itself.
    pub const NAME: &'static str = "file.digest";

    /// Digests files in these folders and below.
    ///
    /// # Errors
    /// [`RootsError`] if there is none, or one of them is not there.
    pub fn new(roots: impl IntoIterator<Item = impl Into<PathBuf>>) -> Result<Self, RootsError> {
        let roots: Result<Vec<_>, _> =
            roots.into_iter().map(|root| Root::of(root.into())).collect();
        match roots? {
            roots if roots.is_empty() => Err(RootsError::None),
            roots => Ok(Self { roots: roots.into() }),
        }
    }

    /// The function, for [`WorkerBuilder::handle_raw`](forebay_worker::WorkerBuilder::handle_raw).
    pub fn handler<S: Send + Sync + 'static>(
        self,
    ) -> impl Fn(Bytes, Context<S>) -> BoxFuture<'static, JobResult<Output>> + Send + Sync + 'static
    {
        move |payload, cx| {
            let digest = self.clone();
            // Off the runtime's threads: a disk may be slow. It stops at the next block when the
            // run is over, so the thread comes back.
            let run = move || digest.run(&payload, || cx.is_cancelled());
            async move { tokio::task::spawn_blocking(run).await? }.boxed()
        }
    }

    fn run(&self, payload: &[u8], stop: impl Fn() -> bool) -> JobResult<Output> {
        let job: Job = serde_json::from_slice(payload).map_err(|error| {
            JobError::reject(anyhow!("a job looks like {{\"path\": …}}: {error}"))
        })?;
        let mut file = self.open(&job.path)?;
        let (sha256, bytes) = digest(&mut file, stop)?;
        let digested = Digested { path: &job.path, sha256, bytes };
        Ok(Output::from_json(serde_json::to_vec(&digested)?))
    }

    /// Opens the file if it is within a root, whatever links lead to it.
    fn open(&self, path: &Path) -> JobResult<File> {
        let asked = path.display();
        let outside =
            || JobError::reject(anyhow!("`{asked}` is outside the folders that may be read"));
        // By its name first: whether something exists elsewhere is nobody's business.
        if !self.roots.iter().any(|root| root.names(path)) {
            return Err(outside());
        }
        let real = fs::canonicalize(path).map_err(|error| unreadable(path, error))?;
        if !self.contains(&real) {
            return Err(outside());
        }
        // Without waiting for the writer of a pipe, and not through a link put there just now.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(flags.bits().cast_signed()).open(&real);
        let file = file.map_err(|error| unreadable(path, error))?;
        if !file.metadata()?.is_file() {
            return Err(JobError::reject(anyhow!("`{asked}` is no regular file")));
        }
        // A folder on the way may have become a link since: what counts is what was opened.
        if !self.contains(&whereabouts(&file, &real)?) {
            return Err(outside());
        }
        Ok(file)
    }

    fn contains(&self, real: &Path) -> bool {
        self.roots.iter().any(|root| real.starts_with(&root.real))
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
}

/// Where an open file is.
fn whereabouts(file: &File, real: &Path) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    if cfg!(target_os = "linux") {
        return fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    }
    fs::canonicalize(real)
}

fn unreadable(path: &Path, error: io::Error) -> JobError {
    let gone = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let cause = anyhow!(error).context(format!("cannot open `{}`", path.display()));
    if gone { JobError::reject(cause) } else { JobError::retry(cause) }
}

fn digest(file: &mut File, stop: impl Fn() -> bool) -> JobResult<(String, u64)> {
    let mut hash = Sha256::new();
    let mut block = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        if stop() {
            return Err(JobError::retry(anyhow!("stopped after {bytes} bytes")));
        }
        match file.read(&mut block) {
            Ok(0) => return Ok((hex::encode(hash.finalize()), bytes)),
            Ok(length) => {
                hash.update(&block[..length]);
                bytes += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_worker::testing::{self, Fate};
    use forebay_worker::{Envelope, HandlerOptions, QueueOptions, Worker};
    use serde_json::{Value, json};
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    struct Folders {
        _all: TempDir,
        inside: PathBuf,
        outside: PathBuf,
    }

    fn folders() -> Folders {
        let all = TempDir::new().unwrap();
        let (inside, outside) = (all.path().join("inside"), all.path().join("outside"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(inside.join("abc"), "abc").unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        Folders { _all: all, inside, outside }
    }

    async fn fate(digest: FileDigest, payload: Value) -> Fate {
        let worker = Worker::builder(())
            .queue("default", QueueOptions::new())
            .handle_raw(FileDigest::NAME, HandlerOptions::new(), digest.handler())
            .build()
            .unwrap();
        let job = Envelope::new(FileDigest::NAME, "default", payload.to_string());
        testing::run_envelope(&worker, job).await
    }

    fn rejected(fate: &Fate, words: &str) -> bool {
        matches!(fate, Fate::Dead { reason, message } if reason == "rejected" && message.contains(words))
    }

    #[tokio::test]
    async fn a_file_is_digested() {
        let folders = folders();
        let path = folders.inside.join("abc");
        let digest = FileDigest::new([&folders.inside]).unwrap();
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let result = json!({ "path": path, "sha256": sha256, "bytes": 3 });
        assert_eq!(fate(digest, json!({ "path": path })).await, Fate::Done(result));
    }

    #[tokio::test]
    async fn a_file_of_several_blocks_is_digested_whole() {
        let folders = folders();
        let path = folders.inside.join("large");
        fs::write(&path, vec![b'a'; 1_000_000]).unwrap();
        let digest = FileDigest::new([&folders.inside]).unwrap();
        let Fate::Done(result) = fate(digest, json!({ "path": path })).await else { panic!() };
        // FIPS 180-2, a million letters a.
        let known = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        assert_eq!((&result["sha256"], &result["bytes"]), (&json!(known), &json!(1_000_000)));
    }

    #[tokio::test]
    async fn nothing_outside_the_roots_is_read_and_nothing_is_told_about_it() {
        let folders = folders();
        symlink(folders.outside.join("secret"), folders.inside.join("link")).unwrap();
        symlink(&folders.outside, folders.inside.join("folder")).unwrap();
        let inside = folders.inside.display();
        for path in [
            folders.outside.join("secret").display().to_string(),
            folders.outside.join("missing").display().to_string(),
            format!("{inside}/../outside/secret"),
            format!("{inside}/../outside/missing"),
            format!("{inside}/link"),
            format!("{inside}/folder/secret"),
            format!("{inside}-more/secret"),
            "abc".to_owned(),
            "/etc/passwd".to_owned(),
            String::new(),
        ] {
            let digest = FileDigest::new([&folders.inside]).unwrap();
            let fate = fate(digest, json!({ "path": path })).await;
            assert!(rejected(&fate, "is outside the folders"), "{path}: {fate:?}");
        }
    }

    #[tokio::test]
    async fn a_link_within_the_roots_may_be_followed() {
        let folders = folders();
        symlink(folders.inside.join("abc"), folders.inside.join("link")).unwrap();
        symlink(&folders.inside, folders.outside.join("root")).unwrap();
        for path in [folders.inside.join("link"), folders.outside.join("root/abc")] {
            let digest = FileDigest::new([folders.outside.join("root")]);
            let digest = digest.unwrap();
            let fate = fate(digest, json!({ "path": path })).await;
            assert!(matches!(fate, Fate::Done(_)), "{path:?}: {fate:?}");
        }
    }

    #[tokio::test]
    async fn what_is_missing_or_no_regular_file_is_rejected() {
        let folders = folders();
        let pipe = folders.inside.join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        for (path, words) in [
            (folders.inside.join("missing"), "No such file"),
            (folders.inside.join("abc/below"), "Not a directory"),
            (folders.inside.clone(), "is no regular file"),
            (pipe, "is no regular file"),
        ] {
            let digest = FileDigest::new([&folders.inside]).unwrap();
            let fate = fate(digest, json!({ "path": path })).await;
            assert!(rejected(&fate, words), "{path:?}: {fate:?}");
        }
    }

    #[tokio::test]
    async fn a_payload_of_another_shape_is_rejected() {
        let folders = folders();
        for payload in [json!({}), json!({ "path": 1 }), json!("x")] {
            let digest = FileDigest::new([&folders.inside]).unwrap();
            assert!(rejected(&fate(digest, payload).await, "a job looks like"));
        }
    }

    #[test]
    fn it_stops_when_its_run_is_over() {
        let folders = folders();
        let digest = FileDigest::new([&folders.inside]).unwrap();
        let payload = json!({ "path": folders.inside.join("abc") }).to_string();
        let error = digest.run(payload.as_bytes(), || true).unwrap_err();
        assert_eq!(error.message(), "stopped after 0 bytes");
    }

    #[test]
    fn it_is_not_built_without_folders() {
        let folders = folders();
        assert!(matches!(FileDigest::new([""; 0]), Err(RootsError::None)));
        for root in [folders.inside.join("missing"), folders.inside.join("abc")] {
            assert!(matches!(FileDigest::new([root]), Err(RootsError::Unusable { .. })));
        }
    }
}
