//! The program: its settings, its exit codes, its signals.

use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::{client, within};

fn program(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay-gateway"));
    command.current_dir(folder.path()).kill_on_drop(true).stdin(Stdio::null());
    for name in ["AMQP_URL", "FOREBAY_NAMESPACE", "FOREBAY_GATEWAY_LISTEN", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

async fn ended(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = within("its end", command.output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

#[tokio::test]
async fn everything_wrong_with_the_settings_is_listed_at_once() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, "listen = \"0.0.0.0:80\"\norigins = [\"x\"]").unwrap();
    let (code, _, errors) = ended(program(&folder).arg("--check")).await;
    assert_eq!(code, 2, "{errors}");
    for words in [
        "tokens would pass in the clear",
        "\"x\" in `origins`",
        "nobody could come in",
        "3 faults found",
    ] {
        assert!(errors.contains(words), "{words}: {errors}");
    }
    std::fs::write(&file, "[anonymous]\nread = [\"channel:public\"]").unwrap();
    let (code, printed, errors) = ended(program(&folder).arg("--check")).await;
    assert_eq!((code, errors.as_str()), (0, ""), "{printed}");
    assert!(
        printed.ends_with("nothing wrong\n") && printed.contains("127.0.0.1:8090"),
        "{printed}"
    );
    let (code, _, errors) = ended(program(&folder).args(["--config", "missing.toml"])).await;
    assert_eq!(code, 2);
    assert!(errors.contains("missing.toml") && errors.contains("--config"), "{errors}");
}

#[tokio::test]
async fn it_answers_until_it_is_told_to_end() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("gateway.toml"), "[anonymous]").unwrap();
    let mut command = program(&folder);
    // Nobody is there, and it opens all the same.
    command.args(["--listen", "127.0.0.1:0", "--operation", "127.0.0.1:0", "--log-format", "json"]);
    let mut running =
        command.arg("--url=amqp://127.0.0.1:1").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines();
    let mut addresses = Vec::new();
    while addresses.len() < 2 {
        let line = within("a log line", lines.next_line()).await.unwrap().expect("it runs");
        let line: Value = serde_json::from_str(&line).unwrap();
        addresses.extend(line["address"].as_str().map(str::to_owned));
    }
    let (operation, doors) = (&addresses[0], &addresses[1]);
    assert_eq!(
        client().get(format!("http://{doors}/openapi.json")).send().await.unwrap().status(),
        200
    );
    let (code, printed, _) =
        ended(program(&folder).args(["--probe", "--operation", operation])).await;
    assert_eq!((code, printed.as_str()), (0, "alive\n"));
    let (code, _, errors) =
        ended(program(&folder).args(["--probe", "readyz", "--operation", operation])).await;
    assert_eq!(code, 1);
    assert!(errors.contains("not ready") && errors.contains("publishing: "), "{errors}");

    let pid = running.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let status = within("its end", running.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    let (code, _, errors) = ended(program(&folder).args([
        "--listen",
        "192.0.2.1:1",
        "--insecure-http",
        "--operation",
        "off",
    ]))
    .await;
    assert_eq!(code, 2, "an address that cannot be had");
    assert!(
        errors.contains("cannot listen at 192.0.2.1:1") && errors.contains("--listen"),
        "{errors}"
    );
}
