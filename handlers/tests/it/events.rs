//! Channels are told what functions say, in whatever language they are.

use forebay_producer::{Event, EventLog, Events, PublishOptions, Read, Start};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time;

use crate::support::{KIND, PATIENCE, Site};

const PYTHON: &str = include_str!("../../examples/python/forebay_serve.py");
const NODE: &str = include_str!("../../examples/node/forebay-serve.mjs");

async fn events(site: &Site) -> Events {
    let log = EventLog::new(&site.broker.config());
    log.declare().await.unwrap();
    log.read(Start::First).await.unwrap()
}

/// The events up to the end of the job, the channel's among them.
async fn until_end(events: &mut Events) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    while !all.last().is_some_and(|event| event.what.is_final()) {
        let read = time::timeout(PATIENCE, events.next()).await.expect("an event in time");
        match read.unwrap() {
            Read::Event(stored) => all.push(stored.event),
            other => panic!("{other:?}"),
        }
    }
    all
}

async fn publish(site: &Site) -> String {
    let options = PublishOptions::new().track(true).owner("tenant-7");
    site.producer.publish_raw(KIND, "{}", options).await.unwrap().id
}

/// Channel, name and data of what channels were told.
fn said(told: &[Event]) -> Vec<Value> {
    let of_channel = told.iter().filter(|event| event.channel().is_some());
    let said = of_channel.map(|event| {
        assert_eq!(event.owner.as_deref(), Some("tenant-7"));
        let data: Value = serde_json::from_str(event.data.get()).unwrap();
        json!([event.channel(), event.event, data, event.job])
    });
    said.collect()
}

/// What each of these programs says.
fn expected(job: &str) -> Vec<Value> {
    let count = |n| json!(["orders", "count", n, job]);
    (0..20).map(count).chain([json!(["orders", "paid", { "by": "card" }, job])]).collect()
}

async fn tells(site: &Site) {
    let mut events = events(site).await;
    let run = site.run().await;
    let job = publish(site).await;
    let told = until_end(&mut events).await;
    assert_eq!(told.last().unwrap().what.word(), "succeeded", "{told:#?}");
    assert_eq!(told.last().unwrap().data.get(), r#"{"result":"done"}"#);
    // Before its end, and in its order.
    assert_eq!(said(&told), expected(&job));
    assert!(told.iter().any(|event| event.what.word() == "progress"), "{told:#?}");
    run.drain().await;
}

#[tokio::test]
async fn a_program_tells_channels_by_lines_on_descriptor_three() {
    let site = Site::with("exec = [\"sh\", \"tell.sh\"]").await;
    site.write(
        "tell.sh",
        r#"
        echo '{"progress": "half"}' >&3
        for n in $(seq 0 19); do
            echo '{"emit": {"channel": "orders", "event": "count", "data": '$n'}}' >&3
        done
        echo '{"emit": {"channel": "no such channel", "event": "lost"}}' >&3
        echo '{"emit": 7}' >&3
        echo '{"emit": {"channel": "orders", "event": "paid", "data": {"by": "card"}}}' >&3
        echo '"done"'
        "#,
    );
    tells(&site).await;
}

#[tokio::test]
async fn a_server_in_python_tells_channels() {
    let site = Site::with("serve = [\"python3\", \"worker.py\"]").await;
    site.write("forebay_serve.py", PYTHON);
    site.write(
        "worker.py",
        &format!(
            r#"
from forebay_serve import job, serve

@job("{KIND}")
def tell(payload, cx):
    cx.progress("half")
    for n in range(20):
        cx.emit("orders", "count", n)
    cx.emit("no such channel", "lost")
    cx.emit("orders", "paid", {{"by": "card"}})
    return "done"

serve()
"#
        ),
    );
    tells(&site).await;
}

#[tokio::test]
async fn a_server_in_node_tells_channels() {
    let site = Site::with("serve = [\"node\", \"worker.mjs\"]").await;
    site.write("forebay-serve.mjs", NODE);
    site.write(
        "worker.mjs",
        &format!(
            r#"
import {{ job, serve }} from "./forebay-serve.mjs";

job("{KIND}", (payload, cx) => {{
  cx.progress("half");
  for (let n = 0; n < 20; n++) cx.emit("orders", "count", n);
  cx.emit("no such channel", "lost");
  cx.emit("orders", "paid", {{ by: "card" }});
  return "done";
}});
serve();
"#
        ),
    );
    tells(&site).await;
}

#[tokio::test]
async fn an_endpoint_tells_channels_with_its_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n{}") {
            let mut chunk = [0; 4096];
            let length = stream.read(&mut chunk).await.unwrap();
            request.extend_from_slice(&chunk[..length]);
        }
        let emit = json!([
            { "channel": "orders", "event": "count", "data": 0 },
            { "channel": "no such channel", "event": "lost" },
            7,
            { "channel": "orders", "event": "paid", "data": { "by": "card" } },
        ]);
        let body = json!({ "result": "done", "emit": emit }).to_string();
        let head = "HTTP/1.1 200 OK\r\nforebay-emit: 1\r\nconnection: close\r\ncontent-length: ";
        let answer = format!("{head}{}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let site = Site::with(&format!("http = \"http://{address}/hook\"")).await;
    let mut events = events(&site).await;
    let run = site.run().await;
    let job = publish(&site).await;
    let told = until_end(&mut events).await;
    assert_eq!(told.last().unwrap().data.get(), r#"{"result":"done"}"#);
    let paid = json!(["orders", "paid", { "by": "card" }, job]);
    assert_eq!(said(&told), [json!(["orders", "count", 0, job]), paid]);
    run.drain().await;
}
