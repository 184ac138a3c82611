//! `--probe`: a health check for images that have nothing else to ask with.
//! In: the worker's address and the name of a page. Out: its answer, and whether it was 200.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use forebay_handlers::manifest::Listen;

const DEADLINE: Duration = Duration::from_secs(3);
/// More than any of the two pages has.
const MOST: u64 = 64 * 1024;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Probe {
    /// Whether the process still turns.
    Livez,
    /// Whether every queue is consumed.
    Readyz,
}

impl Probe {
    fn path(self) -> &'static str {
        match self {
            Self::Livez => "/livez",
            Self::Readyz => "/readyz",
        }
    }

    /// Asks the worker that listens there; its answer if that is 200.
    ///
    /// # Errors
    /// Any other answer, or why there is none.
    pub(crate) fn ask(self, listen: &Listen) -> Result<String, String> {
        let Some(address) = listen.asked_at() else {
            return Err(format!(
                "a worker that listens at `{listen}` cannot be asked; give it a fixed address \
                 with --listen, FOREBAY_LISTEN or `listen` in [worker]"
            ));
        };
        let answer = ask(&address, self.path())
            .map_err(|error| format!("no worker answers at {address}: {error}"))?;
        let (status, body) = read(&answer)
            .ok_or_else(|| format!("what answers at {address} is no worker: it speaks no HTTP"))?;
        if status == 200 { Ok(body.to_owned()) } else { Err(body.to_owned()) }
    }
}

fn ask(address: &str, path: &str) -> io::Result<String> {
    let until = Instant::now() + DEADLINE;
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 3 s")),
        left => Ok(left),
    };
    let host = address.to_socket_addrs()?.next();
    let host = host.ok_or_else(|| io::Error::other("the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&host, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while (answer.len() as u64) < MOST {
        // Each piece has only what is left of the time.
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Status and body of an HTTP answer whose end was the end of the connection.
fn read(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split_whitespace().next()?;
    Some((status.parse().ok()?, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\na: b\r\n\r\nalive\n", Some((200, "alive\n"))),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", Some((503, ""))),
            ("HTTP/1.1 200 OK\r\na: b", None),
            ("SSH-2.0-OpenSSH\r\n\r\n", None),
            ("", None),
        ] {
            assert_eq!(read(answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn a_worker_without_a_fixed_address_cannot_be_asked() {
        for listen in ["off", "127.0.0.1:0"] {
            let refused = Probe::Livez.ask(&listen.parse().unwrap()).unwrap_err();
            assert!(refused.contains(listen) && refused.contains("--listen"), "{refused}");
        }
    }
}
