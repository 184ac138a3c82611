//! `file.digest`: the SHA-256 of a file, the built-in function to begin with.
//! In: `{"path": "/srv/files/a.pdf"}`. Out: `{"path": …, "sha256": …, "bytes": …}`, for files
//! within the configured folders only.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use bytes::Bytes;
use forebay_worker::{Context, JobError, JobResult, Output, without_value};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::roots::{Roots, RootsError};

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
    roots: Roots,
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
        Roots::new(roots).map(|roots| Self { roots })
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
            let why = without_value(&error.to_string());
            JobError::reject(anyhow!("a job looks like {{\"path\": …}}: {why}"))
        })?;
        let mut file = self.roots.open(&job.path)?;
        let (sha256, bytes) = digest(&mut file, stop)?;
        let digested = Digested { path: &job.path, sha256, bytes };
        Ok(Output::from_json(serde_json::to_vec(&digested)?))
    }
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
    use std::fs;
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
        let digest = FileDigest::new([&folders.inside]).unwrap();
        let fate = fate(digest, json!({ "path": 4711 })).await;
        assert!(rejected(&fate, "invalid type, expected") && !format!("{fate:?}").contains("4711"));
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
