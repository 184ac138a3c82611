//! The `forebay` binary, run for real: against a broker, and against what is none.
//! In: arguments and standard input. Out: exit code, stdout and stderr, as a shell sees them.

mod dead;
mod delays;
mod doctor;
mod faults;
mod follow;
mod handover;
#[cfg(unix)]
mod interrupted;
mod manual;
mod publish;
mod queues;
#[cfg(unix)]
mod spool;
mod topology;

use std::process::Stdio;
use std::time::Duration;

use forebay_producer::testing::{self, Broker};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time;

/// No verb takes longer than this in a test.
const PATIENCE: Duration = Duration::from_secs(60);

/// One call of the binary.
struct Call {
    command: Command,
    input: Vec<u8>,
    // Without a forebay.toml, unless the test puts one there.
    directory: TempDir,
}

/// How it ended.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

/// A call that finds `broker`.
fn forebay(broker: &Broker, arguments: &[&str]) -> Call {
    let call = somewhere(broker.url(), arguments);
    call.env("FOREBAY_NAMESPACE", broker.namespace())
}

/// A call that looks for a broker at `url`.
fn somewhere(url: &str, arguments: &[&str]) -> Call {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(arguments).current_dir(directory.path()).env("AMQP_URL", url);
    for variable in ["NAMESPACE", "DECLARE", "STRICT_TOPOLOGY", "MANAGEMENT_URL", "SPOOL"] {
        command.env_remove(format!("FOREBAY_{variable}"));
    }
    command.env_remove("TRACEPARENT").env_remove("TRACESTATE");
    Call { command, input: Vec::new(), directory }
}

impl Call {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    fn manifest(self, text: &str) -> Self {
        self.file("forebay.toml", text)
    }

    fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.directory.path().join(name), text).expect("a file");
        self
    }

    /// Starts it; standard input is the caller's.
    fn start(&mut self) -> Child {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.kill_on_drop(true).spawn().expect("forebay starts")
    }

    async fn run(mut self) -> Ran {
        let mut child = self.start();
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        let input = self.input;
        // It may end before it has read everything.
        let write = tokio::spawn(async move { stdin.write_all(&input).await });
        let ran = ended(child).await;
        _ = write.await;
        ran
    }

    /// Runs it, and expects it to succeed.
    async fn succeed(self) -> Ran {
        let ran = self.run().await;
        assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
        ran
    }

    /// Runs it with `--output json`, and expects one object.
    async fn json(mut self) -> Value {
        self.command.args(["--output", "json"]);
        self.succeed().await.json()
    }
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|why| panic!("{why}: {}", self.out))
    }

    /// Expects an exit code, and words on stderr.
    fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "`{word}` is not in: {}", self.err);
        }
    }
}

async fn ended(child: Child) -> Ran {
    let ended = time::timeout(PATIENCE, child.wait_with_output()).await;
    let ended = ended.expect("forebay ends in time").expect("forebay ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Ran { code: ended.status.code(), out: text(ended.stdout), err: text(ended.stderr) }
}

/// How many jobs wait on a queue, as the binary itself counts them.
async fn ready(broker: &Broker, queue: &str) -> Value {
    let seen = forebay(broker, &["queues", "--queue", queue]).json().await;
    seen["queues"][0]["ready"].clone()
}

async fn broker() -> Broker {
    testing::broker().await
}
