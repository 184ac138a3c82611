//! An AMQP client that writes any bytes as properties and routing key, as no client library would.
//! In: bytes. Out: the broker has confirmed them.

use forebay_worker::testing::Broker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

/// A channel in confirm mode.
pub(crate) struct RawClient {
    stream: TcpStream,
    pub(crate) frame_max: usize,
}

impl RawClient {
    pub(crate) async fn connect(broker: &Broker) -> Self {
        let stream = TcpStream::connect(broker.address()).await.unwrap();
        let mut client = Self { stream, frame_max: 0 };
        let url = broker.url().strip_prefix("amqp://").expect("a plain broker");
        let (user, place) = url.split_once('@').expect("user and password");
        let vhost = place.split_once('/').map_or("/", |(_, vhost)| vhost).replace("%2f", "/");
        client.stream.write_all(b"AMQP\0\0\x09\x01").await.unwrap();
        client.expect(10, 10).await;
        let login = [b"\0", user.replace(':', "\0").as_bytes()].concat();
        let start_ok = [&[0; 4][..], &short(b"PLAIN"), &long(&login), &short(b"en_US")].concat();
        client.method(0, 10, 11, &start_ok).await;
        let tune = client.expect(10, 30).await;
        client.frame_max = u32::from_be_bytes([tune[2], tune[3], tune[4], tune[5]]) as usize;
        client.method(0, 10, 31, &[&tune[..6], &[0, 0]].concat()).await;
        client.method(0, 10, 40, &[&short(vhost.as_bytes())[..], &[0, 0]].concat()).await;
        client.expect(10, 41).await;
        client.method(1, 20, 10, &[0]).await;
        client.expect(20, 11).await;
        client.method(1, 85, 10, &[0]).await;
        client.expect(85, 11).await;
        client
    }

    /// Publishes and waits for the confirm.
    pub(crate) async fn publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        properties: &[u8],
        body: &[u8],
    ) {
        let key = short(routing_key);
        let publish = [&[0, 0][..], &short(exchange.as_bytes()), &key, &[1]].concat();
        self.method(1, 60, 40, &publish).await;
        let size = (body.len() as u64).to_be_bytes();
        self.frame(HEADER, 1, &[&[0, 60, 0, 0][..], &size, properties].concat()).await;
        if !body.is_empty() {
            self.frame(BODY, 1, body).await;
        }
        self.expect(60, 80).await;
    }

    async fn method(&mut self, channel: u16, class: u8, method: u8, arguments: &[u8]) {
        self.frame(METHOD, channel, &[&[0, class, 0, method][..], arguments].concat()).await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let size = (payload.len() as u32).to_be_bytes();
        let head = [&[kind][..], &channel.to_be_bytes(), &size].concat();
        self.stream.write_all(&[&head[..], payload, &[0xce]].concat()).await.unwrap();
    }

    /// The arguments of the next method, which is this one.
    async fn expect(&mut self, class: u8, method: u8) -> Vec<u8> {
        let mut head = [0; 7];
        self.stream.read_exact(&mut head).await.expect("an answer");
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        self.stream.read_exact(&mut payload).await.unwrap();
        assert_eq!(payload[..4], [0, class, 0, method], "{}", payload.escape_ascii());
        payload[4..size].to_vec()
    }
}

/// The properties that most messages have, with a table of these members.
pub(crate) fn properties(kind: &[u8], id: &[u8], members: &[u8]) -> Vec<u8> {
    // headers, message-id, type
    let flags: u16 = (1 << 13) | (1 << 7) | (1 << 5);
    [&flags.to_be_bytes()[..], &long(members), &short(id), &short(kind)].concat()
}

/// A member of a table.
pub(crate) fn member(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&short(name)[..], value].concat()
}

/// A value that is a text.
pub(crate) fn text(text: &[u8]) -> Vec<u8> {
    [b"S", &long(text)[..]].concat()
}

/// Arrays within each other.
pub(crate) fn nested(levels: usize) -> Vec<u8> {
    let size = |level: usize| (((levels - level) * 5) as u32).to_be_bytes();
    (1..=levels).flat_map(|level| [&b"A"[..], &size(level)].concat()).collect()
}

pub(crate) fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

pub(crate) fn long(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text].concat()
}
