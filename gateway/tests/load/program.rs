//! The gateway as a process of its own, as it is run elsewhere, whose memory and time can be read.
//! In: a broker's namespace. Out: an address, and what /proc and /metrics say of the process.

use std::fs;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay_producer::testing::Broker;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time;

/// Longest that it may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is asked whether it is ready.
const ASK: Duration = Duration::from_millis(50);

const SETTINGS: &str = r#"
listen = "127.0.0.1:0"

[anonymous]
read = ["channel:load.*"]

[replay]
window = "WINDOW"

[operation]
listen = "127.0.0.1:0"
"#;

/// A gateway that runs.
pub(crate) struct Program {
    child: Child,
    pub(crate) address: String,
    operation: String,
    complaints: Arc<Mutex<Vec<String>>>,
    _folder: TempDir,
}

impl Program {
    /// Starts one that keeps events in memory for so long, and waits until it is ready.
    pub(crate) async fn start(broker: &Broker, window: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("gateway.toml"), SETTINGS.replace("WINDOW", window)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_forebay-gateway"))
            .args(["--log", "info", "--log-format", "json"])
            .current_dir(folder.path())
            .env("AMQP_URL", broker.url())
            .env("FOREBAY_NAMESPACE", broker.namespace())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut addresses = Vec::new();
        while addresses.len() < 2 {
            let line = time::timeout(PATIENCE, lines.next_line()).await.expect("it says something");
            let line = line.unwrap().expect("the gateway runs");
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            addresses.extend(line["address"].as_str().map(str::to_owned));
        }
        let complaints = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&complaints);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if !line.contains("\"level\":\"INFO\"") {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            }
        });
        let [operation, address] = addresses.try_into().unwrap();
        let program = Self { child, address, operation, complaints, _folder: folder };
        let ready = async {
            while program.page("/readyz").await.is_none() {
                time::sleep(ASK).await;
            }
        };
        time::timeout(PATIENCE, ready).await.expect("the gateway becomes ready");
        program
    }

    /// Memory that is resident now, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that was ever resident.
    pub(crate) fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, key: &str) -> u64 {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    /// CPU time that it has taken.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(self.proc("stat")).unwrap();
        // The name may hold anything, even blanks; user and system time are 12 fields after it.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        // USER_HZ, which is 100 on every Linux.
        Duration::from_millis(ticks * 10)
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.child.id().expect("it runs"))
    }

    /// The sum of a metric over its labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let page = self.page("/metrics").await.unwrap_or_default();
        let of = |line: &&str| line.split(['{', ' ']).next() == Some(name);
        let values = page.lines().filter(of).filter_map(|line| line.rsplit(' ').next());
        values.filter_map(|value| value.parse::<f64>().ok()).sum()
    }

    async fn page(&self, path: &str) -> Option<String> {
        let answer = reqwest::get(format!("http://{}{path}", self.operation)).await.ok()?;
        if answer.status() != 200 {
            return None;
        }
        answer.text().await.ok()
    }

    /// Tells it to end, and waits until it has. What it has complained of is returned.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        let pid = self.child.id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        let ended = time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
        assert!(ended.success(), "the gateway ended with {ended}");
        std::mem::take(&mut *self.complaints.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
