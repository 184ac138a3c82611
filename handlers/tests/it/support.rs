//! What every test here needs: a manifest in a folder of its own, a namespace, `forebay-run`, and
//! waiting for what happens instead of sleeping.

use std::fs;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_producer::testing::{Broker, broker};
use forebay_producer::{
    CallError, DeadLetter, DeadLetters, Filter, Job, Pile, Producer, PublishOptions,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time;

/// Longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The kind that every manifest here has.
pub(crate) const KIND: &str = "test.run";

/// A job whose payload is any JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Any(pub(crate) Value);

impl Job for Any {
    const KIND: &'static str = KIND;
}

/// A manifest in a folder and a namespace on the broker.
pub(crate) struct Site {
    pub(crate) folder: TempDir,
    pub(crate) broker: Broker,
    pub(crate) producer: Producer,
}

/// A `forebay-run` that is running.
pub(crate) struct Run {
    child: Child,
    pub(crate) pid: Pid,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Site {
    pub(crate) async fn new(manifest: &str) -> Self {
        Self::on(broker().await, manifest)
    }

    /// A site on a broker of its own.
    pub(crate) fn on(broker: Broker, manifest: &str) -> Self {
        let producer = Producer::new(&broker.config());
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("forebay.toml"), manifest).unwrap();
        Self { folder, broker, producer }
    }

    /// A site whose only function is `test.run`, with these lines.
    pub(crate) async fn with(function: &str) -> Self {
        Self::new(&format!("[functions.\"{KIND}\"]\n{function}\n")).await
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    /// Waits until a file is there with at least one whole line, and returns it.
    pub(crate) async fn appeared(&self, name: &str) -> String {
        let mut text = String::new();
        eventually(&format!("{name} is written"), async || {
            text = fs::read_to_string(self.file(name)).unwrap_or_default();
            text.ends_with('\n')
        })
        .await;
        text
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay-run"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("AMQP_URL", self.broker.url())
            .env("FOREBAY_NAMESPACE", self.broker.namespace())
            // The default address belongs to one of all that run here.
            .env("FOREBAY_LISTEN", "127.0.0.1:0")
            .env_remove("RUST_LOG")
            .env_remove("FOREBAY_LOG_FORMAT")
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts `forebay-run` and waits until it consumes.
    pub(crate) async fn run(&self) -> Run {
        let run = Run::start(self.command(&[]));
        run.logged("it consumes", |line| line["message"] == "consuming").await;
        run
    }

    pub(crate) async fn publish(&self, payload: Value) -> String {
        let payload = payload.to_string();
        self.producer.publish_raw(KIND, payload, PublishOptions::new()).await.unwrap().id
    }

    /// Publishes a job and waits for its result.
    pub(crate) async fn call(&self, payload: Value) -> Result<Value, CallError> {
        self.producer.call(&Any(payload), PATIENCE).await
    }

    /// Waits for the one dead letter of the default queue.
    pub(crate) async fn dead(&self) -> DeadLetter {
        let letters = DeadLetters::new(&self.broker.config());
        let pile = Pile::Queue("default".to_owned());
        let mut found = Vec::new();
        eventually("there is a dead letter", async || {
            let listing = letters.list(&pile, &Filter::default(), 100).await;
            found = listing.map(|listing| listing.letters).unwrap_or_default();
            !found.is_empty()
        })
        .await;
        letters.close().await;
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    }
}

/// The message of a dead letter's last failure.
pub(crate) fn last_words(letter: &DeadLetter) -> &str {
    letter.envelope.failures.last().map_or("", |failure| failure.message.as_str())
}

impl Run {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).unwrap();
        let log = Arc::<Mutex<Vec<Value>>>::default();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, pid, log }
    }

    pub(crate) fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line of its log.
    pub(crate) async fn logged(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        let ask = async {
            loop {
                found = self.log().into_iter().find(&so);
                if found.is_some() {
                    break;
                }
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        let asked = time::timeout(PATIENCE, ask).await;
        assert!(asked.is_ok(), "not logged: {what}\n{:#?}", self.log());
        found.unwrap()
    }

    /// Where it answers.
    pub(crate) async fn address(&self) -> String {
        let line = self.logged("where it answers", |line| {
            line["message"] == "answering /livez, /readyz, /metrics and /scale"
        });
        line.await["address"].as_str().unwrap().to_owned()
    }

    /// One of its pages: status and text.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.ask("GET", path, "").await;
        (status, body)
    }

    /// Status, head and body of an answer.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        header: &str,
    ) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address().await).await.unwrap();
        let question = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n");
        stream.write_all(question.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    /// Waits until a page has this status and holds these words.
    pub(crate) async fn says(&self, path: &str, status: u16, words: &str) -> String {
        let mut page = (0, String::new());
        let ask = async {
            loop {
                page = self.page(path).await;
                if page.0 == status && page.1.contains(words) {
                    break;
                }
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        let asked = time::timeout(PATIENCE, ask).await;
        assert!(asked.is_ok(), "{path} does not say {status} {words}: {page:?}\n{:#?}", self.log());
        page.1
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Waits for its end; how it ended and its standard output.
    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        let mut stdout = self.child.stdout.take().unwrap();
        let mut text = String::new();
        let status = time::timeout(PATIENCE, async {
            stdout.read_to_string(&mut text).await.unwrap();
            self.child.wait().await.unwrap()
        });
        match status.await {
            Ok(status) => (status, text),
            Err(_) => panic!("it does not end\n{:#?}", self.log()),
        }
    }

    /// Waits for its end, which must be a good one, and returns all it has logged.
    pub(crate) async fn log_to_the_end(self) -> Vec<Value> {
        let log = Arc::clone(&self.log);
        let (status, summary) = self.ended().await;
        assert_eq!(status.code(), Some(0), "{summary}");
        // The task that reads it drops its share at the end.
        eventually("the log is read", async || Arc::strong_count(&log) == 1).await;
        log.lock().unwrap().clone()
    }

    /// Ends it in good order.
    pub(crate) async fn drain(self) -> String {
        self.signal(Signal::TERM);
        let (status, summary) = self.ended().await;
        assert_eq!(status.code(), Some(0), "{summary}");
        summary
    }
}

/// Whether a process is there and no zombie.
pub(crate) fn alive(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    status.is_ok_and(|status| !status.contains(") Z "))
}

/// Asks again until it is so. For facts that nobody announces.
pub(crate) async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let ask = async {
        while !so().await {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(time::timeout(PATIENCE, ask).await.is_ok(), "not within {PATIENCE:?}: {what}");
}
