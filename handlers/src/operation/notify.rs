//! Tells a service manager how the worker is, by the protocol of sd_notify(3).
//! In: `NOTIFY_SOCKET`, the worker's controls. Out: READY, STATUS, WATCHDOG and STOPPING notices.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use forebay_worker::QueueStatus;
use tokio::time;
use tracing::{debug, warn};

use super::{Pulse, pages};

const LOOK: Duration = Duration::from_millis(500);

/// The manager's socket.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
    /// How often it wants to hear that we are alive.
    watchdog: Option<Duration>,
}

/// What was said already.
#[derive(Debug, Default)]
struct Said {
    ready: bool,
    stopping: bool,
    status: String,
}

impl Notifier {
    /// `None` unless a manager has set `NOTIFY_SOCKET`.
    pub(crate) fn from_environment() -> Option<Self> {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let for_us = env::var_os("WATCHDOG_PID").is_none()
            || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
        let asked = number("WATCHDOG_USEC").filter(|usec| for_us && *usec > 0);
        let open = || -> io::Result<Self> {
            let (socket, address) = (UnixDatagram::unbound()?, address(&name)?);
            // A manager that does not read must not hold us up.
            socket.set_nonblocking(true)?;
            // Half of it, as the manual advises.
            let watchdog = asked.map(|usec| Duration::from_micros(usec) / 2);
            Ok(Self { socket, address, watchdog })
        };
        let opened = open();
        opened.inspect_err(|error| warn!(%error, "NOTIFY_SOCKET cannot be used")).ok()
    }

    /// The last word.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, notice: &str) {
        if let Err(error) = self.socket.send_to_addr(notice.as_bytes(), &self.address) {
            debug!(%error, notice, "the service manager was not told");
        }
    }
}

/// A path, or with `@` a name in Linux's abstract namespace.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = name.as_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(name)
}

/// Tells what changes; never ends.
pub(crate) async fn keep(notifier: Option<&Notifier>, pulse: &Pulse) {
    let Some(notifier) = notifier else { return std::future::pending().await };
    let (mut said, controls) = (Said::default(), &pulse.controls);
    let look = notifier.watchdog.map_or(LOOK, |watchdog| watchdog.min(LOOK));
    let mut barked = time::Instant::now();
    loop {
        for notice in notices(&mut said, &controls.queues(), controls.is_draining()) {
            notifier.send(&notice);
        }
        let due = notifier.watchdog.is_some_and(|every| barked.elapsed() + look > every);
        if due && pages::is_alive(pulse.since_tick()) {
            notifier.send("WATCHDOG=1");
            barked = time::Instant::now();
        }
        time::sleep(look).await;
    }
}

/// What is new since the last call.
fn notices(said: &mut Said, queues: &[QueueStatus], draining: bool) -> Vec<String> {
    let mut notices = Vec::new();
    if !said.ready && !draining && queues.iter().all(|queue| queue.consuming) {
        said.ready = true;
        notices.push("READY=1".to_owned());
    }
    if !said.stopping && draining {
        said.stopping = true;
        notices.push("STOPPING=1".to_owned());
    }
    let status = status(queues, draining);
    if said.status != status {
        notices.push(format!("STATUS={status}"));
        said.status = status;
    }
    notices
}

fn status(queues: &[QueueStatus], draining: bool) -> String {
    if draining {
        return format!("draining, running jobs: {}", pages::running(queues));
    }
    let mut status = pages::consuming(queues);
    for queue in queues.iter().filter(|queue| !queue.consuming) {
        status += &format!("; {}: {}", queue.queue, pages::because(queue));
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str, because: Option<&str>, running: usize) -> QueueStatus {
        let mut queue = QueueStatus::default();
        (queue.queue, queue.running) = (name.to_owned(), running);
        (queue.consuming, queue.because) = (because.is_none(), because.map(str::to_owned));
        queue
    }

    #[test]
    fn the_manager_hears_what_is_new_and_ready_only_once() {
        let mut said = Said::default();
        let up = |name| queue(name, None, 0);
        for (queues, draining, expected) in [
            (
                [up("a"), queue("mail", Some("starting"), 0)],
                false,
                &["STATUS=consuming 1 of 2 queues; mail: starting"][..],
            ),
            ([up("a"), queue("mail", Some("starting"), 0)], false, &[]),
            ([up("a"), up("mail")], false, &["READY=1", "STATUS=consuming 2 of 2 queues"]),
            (
                [queue("a", Some("cancelled\nby the broker"), 0), up("mail")],
                false,
                &["STATUS=consuming 1 of 2 queues; a: cancelled by the broker"],
            ),
            ([up("a"), up("mail")], false, &["STATUS=consuming 2 of 2 queues"]),
            (
                [queue("a", Some("draining"), 2), queue("mail", Some("draining"), 0)],
                true,
                &["STOPPING=1", "STATUS=draining, running jobs: 2"],
            ),
            (
                [queue("a", Some("draining"), 1), queue("mail", Some("stopped"), 0)],
                true,
                &["STATUS=draining, running jobs: 1"],
            ),
        ] {
            assert_eq!(notices(&mut said, &queues, draining), expected);
        }
    }

    #[test]
    fn a_worker_that_drains_before_it_was_ready_does_not_become_ready() {
        let told = notices(&mut Said::default(), &[queue("a", None, 0)], true);
        assert_eq!(told, ["STOPPING=1", "STATUS=draining, running jobs: 0"]);
    }

    #[test]
    fn sockets_have_a_path_or_an_abstract_name() {
        let path = address(OsStr::new("/run/notify")).unwrap();
        assert_eq!(path.as_pathname().unwrap().to_str(), Some("/run/notify"));
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            let named = address(OsStr::new("@forebay")).unwrap();
            assert_eq!(named.as_abstract_name(), Some(&b"forebay"[..]));
        }
        assert!(address(OsStr::new(&"long".repeat(50))).is_err());
    }
}
