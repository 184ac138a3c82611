//! `--probe`: a health check for images that have nothing else to ask with.
//! In: the address of the pages about the gateway, and the name of one. Out: its answer, and whether
//! it was 200.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use clap::ValueEnum;

const DEADLINE: Duration = Duration::from_secs(3);
/// More than any of the two pages has.
const MOST: usize = 64 * 1024;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Probe {
    /// Whether the process turns.
    Livez,
    /// Whether clients can be served.
    Readyz,
}

impl Probe {
    /// Asks the gateway that answers there; its answer if that is 200.
    pub(crate) fn ask(self, listen: &str) -> Result<String, String> {
        let Some(address) = asked_at(listen) else {
            return Err(format!(
                "a gateway that answers about itself at `{listen}` cannot be asked; give it a \
                 fixed address with --operation, FOREBAY_GATEWAY_OPERATION or `listen` in \
                 [operation]"
            ));
        };
        let path = match self {
            Self::Livez => "/livez",
            Self::Readyz => "/readyz",
        };
        let answer = ask(&address, path)
            .map_err(|error| format!("no gateway answers at {address}: {error}"))?;
        let (status, body) = read(&answer)
            .ok_or_else(|| format!("what answers at {address} is no gateway: it speaks no HTTP"))?;
        if status == 200 { Ok(body.to_owned()) } else { Err(body.to_owned()) }
    }
}

/// Where a program on the same machine asks; `None` if it cannot.
fn asked_at(listen: &str) -> Option<String> {
    let (host, port) = listen.rsplit_once(':')?;
    let host = match host {
        "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        other => other,
    };
    (port.parse::<u16>().ok()? != 0).then(|| format!("{host}:{port}"))
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
    let question = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while answer.len() < MOST {
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
            ("", None),
        ] {
            assert_eq!(read(answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn it_asks_where_a_program_on_the_same_machine_can() {
        for (listen, asked) in [
            ("127.0.0.1:9465", Some("127.0.0.1:9465")),
            ("0.0.0.0:9465", Some("127.0.0.1:9465")),
            ("[::]:80", Some("[::1]:80")),
            ("127.0.0.1:0", None),
            ("off", None),
        ] {
            assert_eq!(asked_at(listen).as_deref(), asked, "{listen}");
        }
        assert!(Probe::Livez.ask("off").unwrap_err().contains("--operation"));
    }
}
