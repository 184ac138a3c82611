//! One run of a program: started in a process group of its own, fed, listened to, ended.
//! In: a command and the job. Out: how it ended and what it said; nothing of it is left running.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use crate::capture::{Capture, Lines, RESULT};
use crate::guardian;

/// Between TERM and KILL.
pub(crate) const MERCY: Duration = Duration::from_secs(5);

/// A program may leave processes behind that keep its pipes open: how long we go on reading.
pub(crate) const LEFTOVERS: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Capture,
    pub(crate) stderr: Capture,
}

/// A program that was started, in a process group of its own.
#[derive(Debug)]
pub(crate) struct Started {
    /// With its pipes on descriptors 0 to 2.
    pub(crate) child: Child,
    /// What it writes on descriptor 3.
    pub(crate) events: pipe::Receiver,
    pub(crate) group: Group,
}

/// Starts `command` with pipes on descriptors 0 to 3.
pub(crate) fn start(mut command: Command) -> io::Result<Started> {
    let (events, theirs) = io::pipe()?;
    let events = pipe::Receiver::from_owned_fd(OwnedFd::from(events))?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // It forks where the standard library alone would `posix_spawn`; a worker is small enough.
    command
        .fd_mappings(vec![FdMapping { parent_fd: theirs.into(), child_fd: 3 }])
        .expect("one mapping cannot collide");
    let mut command = tokio::process::Command::from(command);
    guardian::ready();
    let child = command.process_group(0).spawn()?;
    let group = Group::of(&child);
    // Our copy of the program's end of descriptor 3 lives in the command, which ends here.
    Ok(Started { child, events, group })
}

/// Runs `command` to its end. Dropping the future ends the whole process group: TERM, 5 s, KILL.
///
/// Every line on file descriptor 3 goes to `on_line`.
pub(crate) async fn run(
    command: Command,
    input: &[u8],
    on_line: impl FnMut(&[u8]),
) -> io::Result<Ended> {
    let Started { mut child, events, group: _group } = start(command)?;
    listen(&mut child, input, events, on_line).await
}

async fn listen(
    child: &mut Child,
    input: &[u8],
    events: pipe::Receiver,
    on_line: impl FnMut(&[u8]),
) -> io::Result<Ended> {
    let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut stdout, mut stderr) = (Capture::new(RESULT), Capture::tail_only());
    let status = {
        let pipes = async {
            tokio::join!(
                feed(stdin, input),
                read(out, |chunk| stdout.push(chunk)),
                read(err, |chunk| stderr.push(chunk)),
                read_lines(events, on_line),
            )
        };
        tokio::pin!(pipes);
        // Both arms are cancel-safe: `pipes` is polled on, and `wait` may be called again.
        tokio::select! {
            status = child.wait() => {
                // Returns at once unless a process it left behind holds a pipe open.
                timeout(LEFTOVERS, pipes).await.ok();
                status?
            }
            _ = &mut pipes => child.wait().await?,
        }
    };
    Ok(Ended { status, stdout, stderr })
}

/// A program that does not read its job is no error, so neither is a broken pipe.
async fn feed(stdin: Option<ChildStdin>, input: &[u8]) {
    if let Some(mut stdin) = stdin {
        stdin.write_all(input).await.ok();
    }
}

/// A pipe that breaks has ended.
async fn read(pipe: Option<impl AsyncRead + Unpin>, mut each: impl FnMut(&[u8])) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
        each(&chunk[..length]);
    }
}

async fn read_lines(events: pipe::Receiver, mut each: impl FnMut(&[u8])) {
    let mut lines = Lines::default();
    read(Some(events), |chunk| lines.push(chunk, &mut each)).await;
    lines.end(each);
}

/// A process group under guard; dropping it ends whatever is still in it.
#[derive(Debug)]
pub(crate) struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            guardian::begin(pid);
        }
        Self(pid)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(group) = self.0 else { return };
        // The usual case: the program ended and left nothing behind.
        if kill_process_group(group, Signal::TERM).is_err() {
            guardian::end(group);
            return;
        }
        // Nobody waits for this task. If the runtime ends first, so does this process, and the
        // guardian goes on from here.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(kill_if_deaf(group));
        }
    }
}

async fn kill_if_deaf(group: Pid) {
    let deadline = Instant::now() + MERCY;
    let mut pause = Duration::from_millis(5);
    while test_kill_process_group(group).is_ok() && Instant::now() < deadline {
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(250));
    }
    kill_process_group(group, Signal::KILL).ok();
    guardian::end(group);
}
