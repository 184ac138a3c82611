//! HTTP endpoints as functions.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Site, last_words};

/// A receiver that gives these answers, one a request, and keeps the requests.
struct Receiver {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    async fn new<const N: usize>(answers: [&'static str; N]) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), answers)
    }

    fn on<const N: usize>(listener: TcpListener, answers: [&'static str; N]) -> Self {
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&requests);
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = whole(&mut stream).await;
                kept.lock().unwrap().push(request);
                let answer = format!("HTTP/1.1 {answer}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// The whole request; its body is `{}`.
async fn whole(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n{}") {
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).await.unwrap();
        assert!(length > 0, "cut short");
        text.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8(text).unwrap()
}

async fn site(address: SocketAddr) -> Site {
    Site::with(&format!(
        "http = \"http://{address}/hook\"\nretry = {{ base = \"200ms\", factor = 1, jitter = false, max_attempts = 100 }}"
    ))
    .await
}

#[tokio::test]
async fn the_answer_is_the_result() {
    let ok = "200 OK\r\ncontent-length: 13\r\nconnection: close\r\n\r\n{\"paid\": 1.5}";
    let receiver = Receiver::new([ok]).await;
    let site = site(receiver.address).await;
    let run = site.run().await;
    assert_eq!(site.call(json!({})).await.unwrap(), json!({ "paid": 1.5 }));
    assert!(receiver.requests()[0].contains("forebay-job-kind: test.run\r\n"));
    run.drain().await;
}

#[tokio::test]
async fn a_busy_receiver_is_asked_again_under_the_same_key() {
    let busy = "429 X\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let ok = "204 X\r\nconnection: close\r\n\r\n";
    let receiver = Receiver::new([busy, ok]).await;
    let site = site(receiver.address).await;
    let run = site.run().await;
    let asked = std::time::Instant::now();
    site.call(json!({})).await.unwrap();
    assert!(asked.elapsed().as_secs_f64() > 0.95, "it did not wait");
    let keys: Vec<_> =
        receiver.requests().iter().map(|request| line(request, "idempotency-key")).collect();
    assert_eq!((keys.len(), &keys[0]), (2, &keys[1]));
    run.drain().await;
}

fn line(request: &str, name: &str) -> String {
    let found = request.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    found.unwrap_or_else(|| panic!("no {name} in {request}")).to_owned()
}

#[tokio::test]
async fn a_refusal_makes_a_dead_letter_at_once() {
    let gone = "404 Not Found\r\ncontent-length: 7\r\nconnection: close\r\n\r\nno hook";
    let receiver = Receiver::new([gone]).await;
    let site = site(receiver.address).await;
    let run = site.run().await;
    site.publish(json!({})).await;
    let letter = site.dead().await;
    let url = format!("http://{}/hook", receiver.address);
    assert_eq!(letter.reason, "rejected");
    assert_eq!(last_words(&letter), format!("{url} answered 404 Not Found: no hook"));
    run.drain().await;
}

#[tokio::test]
async fn a_receiver_that_is_down_gets_the_job_when_it_is_up() {
    let place = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let site = site(address).await;
    let run = site.run().await;
    let id = site.publish(json!({})).await;
    run.logged("the job waits for the receiver", |line| {
        line["message"] == "job will be retried"
            && line["error"].to_string().contains("no answer from")
    })
    .await;
    let ok = "204 X\r\nconnection: close\r\n\r\n";
    let receiver = Receiver::on(TcpListener::bind(address).await.unwrap(), [ok]);
    crate::support::eventually("the job came", async || !receiver.requests().is_empty()).await;
    assert_eq!(line(&receiver.requests()[0], "forebay-job-id"), id);
    assert!(run.drain().await.starts_with("done 1, "));
}
