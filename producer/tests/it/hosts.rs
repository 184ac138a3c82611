//! Several hosts in the broker's URL: whatever some of them do, one that answers is enough.

use forebay_producer::link::connection::{Link, Status};
use forebay_producer::testing::{Broker, Proxy, broker};
use forebay_producer::{Config, Producer};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::{note, soon, through, within};

/// Hosts in this order, with the namespace of a broker.
fn hosts(hosts: &[&str], broker: &Broker) -> Config {
    through(&format!("amqp://guest:guest@{}/%2f", hosts.join(",")), &broker.config())
}

/// A port on which nobody listens, nor can for as long as the socket lives.
fn closed() -> (String, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap().to_string(), socket)
}

/// A port where no connect is ever answered: its backlog is full. It is so for as long as what is
/// returned lives.
async fn black_hole() -> (String, TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut waiting = Vec::new();
    let wait = std::time::Duration::from_millis(300);
    while let Ok(stream) = tokio::time::timeout(wait, TcpStream::connect(&address)).await {
        waiting.push(stream.unwrap());
    }
    (address, listener, waiting)
}

/// A host that accepts connections and never says a word.
async fn silent(broker: &Broker) -> (String, Proxy) {
    let proxy = Proxy::to(&broker.address()).await;
    proxy.hold();
    (proxy.address(), proxy)
}

async fn connected(link: &Link) -> Status {
    let mut status = link.status();
    let up = status.wait_for(|status| status.connection.is_some());
    within("a connection", up).await.unwrap().clone()
}

#[tokio::test]
async fn hosts_that_refuse_keep_silent_or_swallow_everything_do_not_hold_up_the_one_that_answers() {
    let broker = broker().await;
    let (silent, _proxy) = silent(&broker).await;
    let (hole, _listener, _waiting) = black_hole().await;
    let ((closed, _unheard), live) = (closed(), broker.address());
    // In random order: each comes first at times.
    for _ in 0..6 {
        let link = Link::open(&hosts(&[&closed, &silent, &hole, &live], &broker), "test");
        assert_eq!(connected(&link).await.host, Some(live.clone()));
        link.close().await;
        assert_eq!(link.status().borrow().host, None);
    }
}

/// Otherwise each of them would keep a thread and a socket, of which a process has only so many.
#[tokio::test]
async fn tries_that_nobody_waits_for_any_more_are_ended() {
    let broker = broker().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let link = Link::open(&hosts(&[&address], &broker), "test");
    let mut tries = Vec::new();
    for _ in 0..3 {
        let mut stream = within("a try", listener.accept()).await.unwrap().0;
        let mut said = [0; 4];
        within("its greeting", stream.read_exact(&mut said)).await.unwrap();
        assert_eq!(&said, b"AMQP");
        tries.push(stream);
    }
    link.close().await;
    for mut stream in tries {
        within("its end", stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
}

#[tokio::test]
async fn when_its_host_falls_silent_a_producer_goes_on_through_another() {
    let broker = broker().await;
    let proxies = [Proxy::to(&broker.address()).await, Proxy::to(&broker.address()).await];
    let addresses = [proxies[0].address(), proxies[1].address()];
    let producer = Producer::new(&hosts(&[&addresses[0], &addresses[1]], &broker));
    producer.publish(&note(1)).await.unwrap();
    let first = connected(producer.link()).await.host.unwrap();
    let (lost, left) = if first == addresses[0] { (0, 1) } else { (1, 0) };
    // It takes connections all the same.
    proxies[lost].hold();
    proxies[lost].cut();
    producer.publish(&note(2)).await.unwrap();
    assert_eq!(connected(producer.link()).await.host.as_ref(), Some(&addresses[left]));
    // And back, though the other one has failed before.
    proxies[lost].pass();
    proxies[left].hold();
    proxies[left].cut();
    producer.publish(&note(3)).await.unwrap();
    assert_eq!(connected(producer.link()).await.host.as_ref(), Some(&addresses[lost]));
}

#[tokio::test]
async fn when_no_host_can_be_reached_the_trouble_names_each_with_its_reason() {
    let broker = broker().await;
    let ((a, _unheard), (b, _too)) = (closed(), closed());
    let link = Link::open(&hosts(&[&a, &b], &broker), "test");
    let mut status = link.status();
    within("a fault", status.wait_for(|status| status.last_fault.is_some())).await.unwrap();
    let trouble = link.trouble();
    for host in [&a, &b] {
        assert!(trouble.contains(&format!("{host}: Connection refused")), "{trouble}");
    }
    let error = link.connected(tokio::time::Instant::now()).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{b}: Connection refused")), "{error}");
}

#[tokio::test]
async fn a_lost_connection_is_told_with_its_host() {
    let broker = broker().await;
    let ((closed, _unheard), proxy) = (closed(), Proxy::to(&broker.address()).await);
    let link = Link::open(&hosts(&[&closed, &proxy.address()], &broker), "test");
    assert_eq!(connected(&link).await.host, Some(proxy.address()));
    let mut status = link.status();
    status.mark_unchanged();
    proxy.hold();
    proxy.cut();
    let lost = within("a loss", status.wait_for(|status| status.last_fault.is_some())).await;
    let told = lost.unwrap().last_fault.clone().unwrap();
    assert!(told.starts_with(&proxy.address()), "{told}");
    proxy.pass();
    assert_eq!(connected(&link).await.host, Some(proxy.address()));
    _ = link.channel(soon()).await.unwrap();
}
