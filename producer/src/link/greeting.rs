//! What a broker says before anybody logs in: which it is, and how far the way to it is open.
//! In: a configuration. Out: for each host its greeting, or the step at which it failed.

use std::time::Duration;

use async_rs::TokioRuntime;
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use lapin::protocol::connection::AMQPMethod;
use lapin::protocol::{AMQPClass, parse_class};
use lapin::tcp::AMQPUriTcpExt;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::time;

use super::io;
use crate::config::{Config, address};

/// What `connection.start` tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Greeting {
    /// `RabbitMQ`.
    pub product: String,
    /// `4.3.6`.
    pub version: String,
    /// The cluster's name.
    pub cluster: String,
    /// Ways to log in, separated by blanks.
    pub mechanisms: String,
}

/// How far the way to a broker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Name resolution and TCP.
    Tcp,
    /// The TLS handshake, for `amqps://`.
    Tls,
    /// The AMQP greeting.
    Amqp,
}

/// The step that failed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unheard {
    /// Which step.
    pub step: Step,
    /// In the words of whoever refused.
    pub because: String,
}

/// Asks every host of the configuration, by its `host:port`; each step waits at most `wait`.
pub async fn greetings(
    config: &Config,
    wait: Duration,
) -> Vec<(String, Result<Greeting, Unheard>)> {
    let mut heard = Vec::new();
    for uri in &config.hosts {
        let uri_of_task = uri.clone();
        // On the thread that does all our I/O, as every other connection.
        let asked = io::handle().spawn(async move { greeting(&uri_of_task, wait).await });
        let greeting = asked.await.unwrap_or_else(|error| unheard(Step::Amqp, error.to_string()));
        heard.push((address(uri), greeting));
    }
    heard
}

async fn greeting(uri: &AMQPUri, wait: Duration) -> Result<Greeting, Unheard> {
    let runtime = TokioRuntime::tokio_with_handle(io::handle().clone());
    let late =
        |step| unheard(step, format!("no answer within {}", humantime::format_duration(wait)));
    let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri.clone() };
    let mut stream = match time::timeout(wait, plain.connect_async(&runtime)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return unheard(Step::Tcp, error.to_string()),
        Err(_) => return late(Step::Tcp),
    };
    if uri.scheme == AMQPScheme::AMQPS {
        stream = match time::timeout(wait, uri.connect_async(&runtime)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return unheard(Step::Tls, error.to_string()),
            Err(_) => return late(Step::Tls),
        };
    }
    let exchange = async {
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        stream.flush().await?;
        let mut head = [0; 7];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        // A greeting has about half a kilobyte.
        if head[..3] != [1, 0, 0] || length > 64 * 1024 {
            return Ok(Err(head));
        }
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await?;
        Ok::<_, std::io::Error>(Ok(payload))
    };
    match time::timeout(wait, exchange).await {
        Ok(Ok(Ok(payload))) => match parse_class(payload.as_slice()) {
            Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) => {
                let tell = |name| text(&start.server_properties, name);
                Ok(Greeting {
                    product: tell("product"),
                    version: tell("version"),
                    cluster: tell("cluster_name"),
                    mechanisms: start.mechanisms.to_string(),
                })
            }
            _ => unheard(Step::Amqp, "what it says is no AMQP greeting".to_owned()),
        },
        Ok(Ok(Err(head))) => unheard(Step::Amqp, stranger(&head)),
        Ok(Err(error)) => unheard(Step::Amqp, format!("it ends the connection ({error})")),
        Err(_) => late(Step::Amqp),
    }
}

/// What answers with something else than a frame.
fn stranger(head: &[u8; 7]) -> String {
    match head {
        [b'A', b'M', b'Q', b'P', ..] => "it speaks another version of AMQP".to_owned(),
        // A TLS alert.
        [0x15, 0x03, ..] => "it wants TLS".to_owned(),
        _ => format!("it is no AMQP server: it says `{}`", head.escape_ascii()),
    }
}

fn text(table: &FieldTable, name: &str) -> String {
    match table.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    }
}

fn unheard<T>(step: Step, because: String) -> Result<T, Unheard> {
    Err(Unheard { step, because })
}
