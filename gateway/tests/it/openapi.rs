//! The description is true: schemathesis makes requests by it, right ones and wrong ones.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{Open, open_with, token, within};

/// Where docker/test.sh puts it. A test runs in the folder of its crate.
const USUAL: &str = "../target/schemathesis/bin/schemathesis";

/// Its requests to some paths, in a form that ends within a minute.
async fn try_out(open: &Open, program: &Path, paths: &str, mode: &str) {
    let root = token("root", &json!({ "publish": ["*"], "admin": true }));
    let notes = TempDir::new().unwrap(); // it keeps what it found in the folder where it runs
    let run = Command::new(program)
        .current_dir(&notes)
        .arg("run")
        .arg(open.http("/openapi.json"))
        .args(["--include-path-regex", paths, "--mode", mode])
        .args(["--header", &format!("Authorization: Bearer {root}")])
        .args(["--checks", "all", "--max-examples", "40", "--seed", "6", "--max-time", "20"])
        .args(["--workers", "1", "--request-timeout", "20", "--no-color"])
        .args(["--generation-database", "none"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let run = within("the end of schemathesis", run).await.unwrap();
    let (said, wrong) =
        (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}\n{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_as_the_description_says() {
    let stated = std::env::var_os("FOREBAY_SCHEMATHESIS").map(PathBuf::from);
    let Some(program) = stated.or(Path::new(USUAL).canonicalize().ok()) else {
        eprintln!(
            "skipped: schemathesis is not installed: python3 -m venv target/schemathesis && \
             target/schemathesis/bin/pip install -r gateway/tests/openapi/requirements.txt"
        );
        return;
    };
    let open = open_with(|settings| {
        settings.limits.requests_per_second = 1e6;
        settings.limits.requests_burst = 1_000_000;
        settings.limits.publishes_per_second = 1e6;
        settings.limits.publishes_burst = 1_000_000;
    })
    .await;
    open.tell_and_see("news", 0).await;
    try_out(&open, &program, "^/(jobs|ticket)", "all").await;
    // A right request is answered without end.
    try_out(&open, &program, "^/events", "negative").await;
}
