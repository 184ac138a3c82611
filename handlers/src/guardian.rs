//! Ends the programs that functions started when this process dies, however it dies.
//! In: process groups that begin and end. Out: a small process that outlives us by at most 5 s.
//!
//! The kernel's way (`PR_SET_PDEATHSIG`) was not taken: it needs unsafe code or another program
//! between us and the function, it fires when the *thread* that started the child ends (threads
//! of an async runtime come and go), it reaches the child but not the child's children, and it is
//! Linux only. A pipe closes when its writer dies by any means, so one small `sh` that reads
//! group numbers from a pipe sees to all of them, on every Unix.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::process::Pid;
use tracing::warn;

/// `+ 12` begins group 12, `- 12` ends it; at the end of input, what is left gets TERM and, 5 s
/// later, KILL. Signals that end us may reach it too (Ctrl-C, systemd): it waits for the pipe.
const SCRIPT: &str = r#"
trap '' TERM INT HUP QUIT
live=' '
while read -r what group; do
  case "$what$live" in
    +*) live="$live$group " ;;
    -*" $group "*) live="${live%% $group *} ${live#* $group }" ;;
  esac
done
end() { for group in $live; do kill -s "$1" -- "-$group" 2>/dev/null && left=yes; done; }
left=; end TERM
[ -z "$left" ] && exit
for i in 1 2 3 4 5 6 7 8 9 10; do
  sleep 0.5; left=; end 0
  [ -z "$left" ] && exit
done
end KILL
"#;

/// The one of this process: it dies with the process, whoever uses it.
static GUARDIAN: LazyLock<Mutex<Guardian>> = LazyLock::new(Mutex::default);

/// Starts the guardian unless it is there, so that a group is guarded as soon as it has begun: what
/// has read anything of its job is.
pub(crate) fn ready() {
    GUARDIAN.lock().unwrap_or_else(PoisonError::into_inner).ready();
}

/// Puts a process group under guard.
pub(crate) fn begin(group: Pid) {
    let mut guardian = GUARDIAN.lock().unwrap_or_else(PoisonError::into_inner);
    guardian.begin(group.as_raw_nonzero().get());
}

/// The group has ended; its number may be given to others.
pub(crate) fn end(group: Pid) {
    let mut guardian = GUARDIAN.lock().unwrap_or_else(PoisonError::into_inner);
    guardian.end(group.as_raw_nonzero().get());
}

#[derive(Debug, Default)]
struct Guardian {
    live: BTreeSet<i32>,
    shell: Option<Child>,
    /// Without it functions run all the same: in a container, everything ends with the worker.
    given_up: bool,
}

impl Guardian {
    fn ready(&mut self) {
        if self.shell.is_none() && !self.given_up {
            self.replace();
        }
    }

    fn begin(&mut self, group: i32) {
        self.live.insert(group);
        self.tell('+', group);
    }

    fn end(&mut self, group: i32) {
        if self.live.remove(&group) {
            self.tell('-', group);
        }
    }

    fn tell(&mut self, what: char, group: i32) {
        if self.given_up || self.write(&format!("{what} {group}\n")).is_ok() {
            return;
        }
        // Ended by someone: the next one is told everything.
        self.replace();
    }

    fn replace(&mut self) {
        if let Err(error) = self.restart() {
            self.given_up = true;
            warn!(%error, "programs of functions will outlive this worker if it is killed");
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let pipe = self.shell.as_mut().and_then(|shell| shell.stdin.as_mut());
        pipe.ok_or(io::ErrorKind::NotConnected)?.write_all(line.as_bytes())
    }

    fn restart(&mut self) -> io::Result<()> {
        if let Some(mut old) = self.shell.take() {
            // It has ended (its pipe is broken): this collects it.
            old.wait()?;
        }
        self.shell = Some(
            Command::new("/bin/sh")
                .args(["-c", SCRIPT, "forebay-guardian"])
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?,
        );
        let everything: String = self.live.iter().map(|group| format!("+ {group}\n")).collect();
        self.write(&everything)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn sleeper(script: &str) -> (Child, i32) {
        let mut command = Command::new("/bin/sh");
        let child = command.args(["-c", script]).process_group(0).spawn().unwrap();
        let group = i32::try_from(child.id()).unwrap();
        (child, group)
    }

    fn ended_within(child: &mut Child, limit: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < limit {
            if child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    #[test]
    fn what_is_under_guard_ends_when_the_pipe_closes() {
        let mut guardian = Guardian::default();
        let (mut guarded, first) = sleeper("sleep 600 & sleep 600; wait");
        let (mut released, second) = sleeper("exec sleep 600");
        guardian.begin(second);
        guardian.begin(first);
        guardian.end(second);
        drop(guardian);
        assert!(ended_within(&mut guarded, Duration::from_secs(5)));
        assert!(!ended_within(&mut released, Duration::from_millis(200)));
        released.kill().unwrap();
        released.wait().unwrap();
    }

    #[test]
    fn what_does_not_listen_is_killed() {
        let mut guardian = Guardian::default();
        let (mut stubborn, group) = sleeper("trap '' TERM; while :; do sleep 1; done");
        std::thread::sleep(Duration::from_millis(100));
        guardian.begin(group);
        drop(guardian);
        assert!(!ended_within(&mut stubborn, Duration::from_secs(3)));
        assert!(ended_within(&mut stubborn, Duration::from_secs(6)));
    }

    #[test]
    fn a_guardian_that_was_ended_is_replaced() {
        let mut guardian = Guardian::default();
        let (mut guarded, group) = sleeper("exec sleep 600");
        guardian.begin(group);
        guardian.shell.as_mut().unwrap().kill().unwrap();
        guardian.shell.as_mut().unwrap().wait().unwrap();
        let (mut other, second) = sleeper("exit");
        guardian.begin(second);
        drop(guardian);
        assert!(ended_within(&mut guarded, Duration::from_secs(5)));
        other.wait().unwrap();
    }
}
