//! Servers of the distribution's own packages, started privately on loopback for tests.
//! In: a program and its data folder. Out: a process that ends with this one, however this one ends.
//!
//! A small `sh` starts the server and reads orders from a pipe. When the pipe closes, because this
//! process has ended by whatever means, it ends the server and removes the folder.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{self, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// `prepare`, `start`, `stop` (in good order) and `kill`, each answered by a line with an exit code;
/// arguments: folder, signal for a good end, what to prepare, command. Signals do
/// not end it: it waits for the pipe.
const SCRIPT: &str = r#"
trap '' TERM INT HUP QUIT PIPE
folder=$1 gently=$2 prepare=$3 server=
shift 3
finish() {
  [ -z "$server" ] || { kill -s "$1" "$server" 2>/dev/null; wait "$server" 2>/dev/null; }
  server=
}
while read -r order; do
  failed=0
  case $order in
    prepare) (eval "$prepare") >>"$folder/log" 2>&1 </dev/null || failed=$? ;;
    start) "$@" >>"$folder/log" 2>&1 </dev/null & server=$! ;;
    stop) finish "$gently" ;;
    kill) finish KILL ;;
  esac
  echo "$failed" 2>/dev/null
done
finish "$gently"
rm -rf "$folder"
"#;

/// A server process and its keeper.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) folder: PathBuf,
    pub(super) port: u16,
    keeper: Mutex<Keeper>,
}

#[derive(Debug)]
struct Keeper {
    shell: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Server {
    /// A keeper without a server yet. `prepare` is a script for `sh` that may use `$folder`;
    /// `command` gets the folder and the port.
    ///
    /// # Panics
    /// When there is no `sh`, or what is to be prepared fails: with its output.
    pub(super) fn new(
        name: &str,
        gently: &str,
        prepare: &str,
        command: impl FnOnce(&Path, u16) -> Vec<String>,
    ) -> Self {
        let (folder, port) = (new_folder(name), free_port());
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "forebay-test-server"])
            .arg(&folder)
            .args([gently, prepare])
            .args(command(&folder, port))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Whoever kills a whole group, as `timeout` does, is not to take the keeper along.
            .process_group(0)
            .spawn()
            .expect("there is a sh");
        let answers = BufReader::new(shell.stdout.take().expect("a pipe was asked for"));
        let server = Self { folder, port, keeper: Mutex::new(Keeper { shell, answers }) };
        // By the keeper: when we die meanwhile, it removes the folder afterwards.
        let failed = server.order("prepare");
        assert_eq!(failed, "0", "{prepare}: {}", server.log());
        server
    }

    /// Starts it, and waits until it accepts connections.
    ///
    /// # Panics
    /// When it does not within a minute: with the end of its log.
    pub(super) async fn start(&self) {
        self.order("start");
        let (address, deadline) =
            (SocketAddr::from(([127, 0, 0, 1], self.port)), Instant::now() + PATIENCE);
        while TcpStream::connect(address).await.is_err() {
            assert!(Instant::now() < deadline, "no server at {address}: {}", self.log());
            time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it in good order.
    pub(super) fn stop(&self) {
        self.order("stop");
    }

    /// Kills it.
    pub(super) fn kill(&self) {
        self.order("kill");
    }

    pub(super) fn log(&self) -> String {
        let mut log = String::new();
        _ = File::open(self.folder.join("log")).and_then(|mut file| file.read_to_string(&mut log));
        let lines: Vec<_> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn order(&self, order: &str) -> String {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = keeper.shell.stdin.as_mut().expect("a pipe was asked for");
        writeln!(pipe, "{order}").expect("the keeper of the test server reads");
        let mut answer = String::new();
        keeper.answers.read_line(&mut answer).expect("the keeper of the test server answers");
        answer.trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(keeper.shell.stdin.take());
        _ = keeper.shell.wait();
    }
}

fn new_folder(name: &str) -> PathBuf {
    let random = fastrand::u64(..);
    let folder = std::env::temp_dir().join(format!("forebay-test-{name}-{random:016x}"));
    fs::create_dir(&folder).expect("the folder for temporary files can be written");
    folder
}

pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
    listener.local_addr().expect("it is bound").port()
}

/// The first of these programs that is there: in one of the folders, or on the `PATH`.
pub(super) fn program(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<_> = std::env::split_paths(&path).collect();
    folders.iter().chain(&on_path).map(|folder| folder.join(name)).find(|file| file.is_file())
}
