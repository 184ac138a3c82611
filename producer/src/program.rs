//! What our programs have in common: how they are asked about themselves, and how sizes are written.
//! In: text from a flag, a file or a socket. Out: what it says.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(3);
/// More than any page has that is asked for, in bytes.
const MOST: usize = 64 * 1024;

/// Where a program on the same machine asks one that listens there; `None` if it cannot: that one
/// listens nowhere, or on any port.
pub fn asked_at(listen: &str) -> Option<String> {
    let (host, port) = listen.rsplit_once(':')?;
    let host = match host {
        "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        other => other,
    };
    (port.parse::<u16>().ok()? != 0).then(|| format!("{host}:{port}"))
}

/// Asks for a page by HTTP, for 3 s at most; its status and text. `None`: what answers there speaks
/// no HTTP.
///
/// # Errors
/// Why nothing answers.
pub fn page(address: &str, path: &str) -> io::Result<Option<(u16, String)>> {
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
    let answer = String::from_utf8_lossy(&answer);
    Ok(parts(&answer).map(|(status, body)| (status, body.to_owned())))
}

/// Status and body of an HTTP answer whose end was the end of the connection.
fn parts(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split_whitespace().next()?;
    Some((status.parse().ok()?, body))
}

/// Bytes: `10MB` is ten million, `10MiB` is 10 × 2^20. `None` for nothing, and for what is no size.
pub fn size(text: &str) -> Option<usize> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let factor: usize = match unit.trim() {
        "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(factor).filter(|bytes| *bytes > 0)
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
            assert_eq!(parts(answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn it_is_asked_where_a_program_on_the_same_machine_can() {
        for (listen, asked) in [
            ("127.0.0.1:9464", Some("127.0.0.1:9464")),
            ("0.0.0.0:9464", Some("127.0.0.1:9464")),
            ("[::]:80", Some("[::1]:80")),
            ("[::1]:80", Some("[::1]:80")),
            ("localhost:9464", Some("localhost:9464")),
            ("127.0.0.1:0", None),
            ("off", None),
        ] {
            assert_eq!(asked_at(listen).as_deref(), asked, "{listen}");
        }
    }

    #[test]
    fn sizes_are_decimal_or_binary_by_their_unit() {
        for (text, bytes) in [
            ("10MB", Some(10_000_000)),
            ("16MiB", Some(16 << 20)),
            ("500 kB", Some(500_000)),
            ("1B", Some(1)),
            ("0MB", None),
            ("MB", None),
            ("10", None),
            ("10mb", None),
            ("", None),
            ("99999999999999999999MB", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }
}
