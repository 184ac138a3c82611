//! Functions that take batches: programs, programs that stay, and HTTP endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use forebay_producer::CallError;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{KIND, Site, last_words};

const PYTHON: &str = include_str!("../../examples/python/forebay_serve.py");
const NODE: &str = include_str!("../../examples/node/forebay-serve.mjs");

/// Retries at once, and batches of four that are waited for until they are full.
const FOUR: &str = "retry = { base = \"100ms\", factor = 1, jitter = false, max_attempts = 3 }\n\
                    batch = { size = 4, window = \"2s\" }";

/// Calls with numbers from 0 to 3; what each is answered.
async fn call_four(site: &Site) -> Vec<Result<Value, CallError>> {
    join_all((0..4).map(|n| site.call(json!(n)))).await
}

/// 0 and 3 are answered with their double, 1 is rejected, 2 fails once.
async fn four_are_settled_one_by_one(site: &Site) {
    let run = site.run().await;
    let answers = call_four(site).await;
    assert_eq!(answers[0].as_ref().unwrap(), &json!(0));
    assert!(matches!(&answers[1], Err(CallError::Dead { .. })), "{answers:?}");
    assert_eq!(answers[2].as_ref().unwrap(), &json!(4));
    assert_eq!(answers[3].as_ref().unwrap(), &json!(6));
    let letter = site.dead().await;
    assert_eq!((letter.reason.as_str(), &*letter.envelope.payload), ("rejected", &b"1"[..]));
    assert!(last_words(&letter).contains("odd one"), "{letter:?}");
    let summary = run.drain().await;
    assert!(summary.starts_with("done 3, retried 1, dead 1, "), "{summary}");
}

#[tokio::test]
async fn a_program_settles_each_job_of_its_batch() {
    let script = r#"
import json, os, sys
jobs = json.load(sys.stdin)
assert int(os.environ["FOREBAY_BATCH_SIZE"]) == len(jobs)
assert "FOREBAY_JOB_ID" not in os.environ and os.environ["FOREBAY_JOB_KIND"] == "test.run"
failures, results = [], {}
for job in jobs:
    n = job["payload"]
    if n == 1:
        failures.append({"itemIdentifier": job["id"], "error": "odd one", "reject": True})
    elif n == 2 and job["attempt"] == 1:
        failures.append({"itemIdentifier": job["id"]})
    else:
        results[job["id"]] = 2 * n
with open("batches", "a") as file: print(len(jobs), file=file)
json.dump({"batchItemFailures": failures, "results": results}, sys.stdout)
"#;
    let site = Site::with(&format!("exec = [\"python3\", \"batch.py\"]\n{FOUR}")).await;
    site.write("batch.py", script);
    four_are_settled_one_by_one(&site).await;
    assert_eq!(site.appeared("batches").await, "4\n1\n");
}

#[tokio::test]
async fn an_exit_code_and_an_answer_that_is_not_believed_are_about_all_jobs() {
    // Attempt by attempt: a stranger in the answer, no JSON, and exit code 65.
    let script = r#"
import json, sys
jobs = json.load(sys.stdin)
attempt = jobs[0]["attempt"]
if attempt == 1: print(json.dumps({"batchItemFailures": [{"itemIdentifier": "stranger"}]}))
if attempt == 2: print("imported", len(jobs), "rows")
if attempt == 3:
    print("bad data", file=sys.stderr)
    sys.exit(65)
"#;
    let site = Site::with(&format!("exec = [\"python3\", \"batch.py\"]\n{FOUR}")).await;
    site.write("batch.py", script);
    let run = site.run().await;
    let answers = call_four(&site).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(CallError::Dead { .. }))));
    let letters = forebay_producer::DeadLetters::new(&site.broker.config());
    let pile = forebay_producer::Pile::Queue("default".to_owned());
    let listing = letters.list(&pile, &forebay_producer::Filter::default(), 100).await.unwrap();
    letters.close().await;
    assert_eq!(listing.letters.len(), 4);
    for letter in listing.letters {
        let words =
            ["names job `stranger`", "imported 4 rows", "ended with exit code 65: bad data"];
        assert_eq!(letter.envelope.failures.len(), 3, "{letter:?}");
        for (failure, words) in letter.envelope.failures.iter().zip(words) {
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }
    assert!(run.drain().await.starts_with("done 0, retried 8, dead 4, "));
}

#[tokio::test]
async fn a_python_process_settles_each_job_of_its_batch() {
    let worker = format!(
        "from forebay_serve import Reject, batch, serve\n\
         @batch('{KIND}')\n\
         def run(items, cx):\n    \
             cx.progress(len(items))\n    \
             for item in items:\n        \
                 if item.payload == 1: item.error = Reject('odd one')\n        \
                 elif item.payload == 2 and item.attempt == 1: item.error = 'locked'\n        \
                 else: item.result = 2 * item.payload\n\
         serve()\n"
    );
    let site = Site::with(&format!("serve = [\"python3\", \"worker.py\"]\n{FOUR}")).await;
    site.write("forebay_serve.py", PYTHON);
    site.write("worker.py", &worker);
    four_are_settled_one_by_one(&site).await;
}

#[tokio::test]
async fn a_node_process_settles_each_job_of_its_batch() {
    let worker = format!(
        "import {{ Reject, batch, serve }} from './forebay-serve.mjs';\n\
         batch('{KIND}', async (items, cx) => {{\n\
           for (const item of items) {{\n\
             if (item.payload === 1) item.error = new Reject('odd one');\n\
             else if (item.payload === 2 && item.attempt === 1) item.error = 'locked';\n\
             else item.result = 2 * item.payload;\n\
           }}\n\
         }});\n\
         serve();\n"
    );
    let site = Site::with(&format!("serve = [\"node\", \"worker.mjs\"]\n{FOUR}")).await;
    site.write("forebay-serve.mjs", NODE);
    site.write("worker.mjs", &worker);
    four_are_settled_one_by_one(&site).await;
}

#[tokio::test]
async fn a_python_function_that_raises_fails_all_jobs_of_its_batch() {
    let worker = format!(
        "from forebay_serve import Defer, batch, serve\n\
         calls = []\n\
         @batch('{KIND}')\n\
         async def run(items, cx):\n    \
             calls.append(1)\n    \
             if len(calls) == 1: raise Defer(0.1, 'not yet')\n    \
             if all(item.attempt == 1 for item in items): raise ValueError('broken')\n\
         serve()\n"
    );
    let site = Site::with(&format!("serve = [\"python3\", \"worker.py\"]\n{FOUR}")).await;
    site.write("forebay_serve.py", PYTHON);
    site.write("worker.py", &worker);
    let run = site.run().await;
    for answer in call_four(&site).await {
        assert_eq!(answer.unwrap(), Value::Null);
    }
    run.logged("why", |line| {
        line["message"] == "job will be retried" && line["error"] == "ValueError: broken"
    })
    .await;
    assert!(run.drain().await.starts_with("done 4, retried 4, dead 0, put off 4, "));
}

#[tokio::test]
async fn an_endpoint_settles_each_job_of_its_batch() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heads);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (head, jobs) = request(&mut stream).await;
            kept.lock().unwrap().push(head);
            let (mut failures, mut results) = (Vec::new(), BTreeMap::new());
            for job in &jobs {
                match (job["payload"].as_u64().unwrap(), job["attempt"].as_u64().unwrap()) {
                    (1, _) => failures.push(
                        json!({ "itemIdentifier": job["id"], "error": "odd one", "reject": true }),
                    ),
                    (2, 1) => {
                        failures.push(json!({ "itemIdentifier": job["id"], "retry_after": 0.1 }))
                    }
                    (n, _) => _ = results.insert(job["id"].as_str().unwrap(), 2 * n),
                }
            }
            let body = json!({ "batchItemFailures": failures, "results": results }).to_string();
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let site = Site::with(&format!("http = \"http://{address}/rows\"\n{FOUR}")).await;
    four_are_settled_one_by_one(&site).await;
    let heads = heads.lock().unwrap().clone();
    assert_eq!(heads.len(), 2);
    assert!(heads[0].contains("forebay-batch-size: 4\r\n"), "{}", heads[0]);
    assert!(heads[0].contains("forebay-job-kind: test.run\r\n"), "{}", heads[0]);
    assert!(!heads[0].contains("idempotency-key"), "{}", heads[0]);
}

/// The head and the jobs of a request.
async fn request(stream: &mut tokio::net::TcpStream) -> (String, Vec<Value>) {
    let mut text = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).await.unwrap();
        assert!(length > 0, "cut short");
        text.extend_from_slice(&chunk[..length]);
        let so_far = String::from_utf8_lossy(&text);
        if let Some((head, body)) = so_far.split_once("\r\n\r\n")
            && let Ok(jobs) = serde_json::from_str(body)
        {
            return (format!("{}\r\n", head.to_ascii_lowercase()), jobs);
        }
    }
}

#[tokio::test]
async fn how_large_batches_are_is_measured() {
    let site = Site::with(&format!("exec = [\"true\"]\n{FOUR}")).await;
    let run = site.run().await;
    for answer in call_four(&site).await {
        assert_eq!(answer.unwrap(), Value::Null);
    }
    let labels = format!("queue=\"default\",kind=\"{KIND}\"");
    run.says("/metrics", 200, &format!("forebay_batch_jobs_count{{{labels}}} 1")).await;
    let page = run.says("/metrics", 200, &format!("forebay_batch_jobs_sum{{{labels}}} 4")).await;
    assert!(page.contains(&format!("forebay_batch_jobs_bucket{{{labels},le=\"5\"}} 1")), "{page}");
    let done = format!("forebay_jobs_total{{{labels},outcome=\"done\"}} 4");
    assert!(page.contains(&done), "{page}");
    run.drain().await;
}

#[tokio::test]
async fn a_prefetch_that_cannot_fill_a_batch_is_refused_with_its_line() {
    let text = format!(
        "[queues.default]\nprefetch = 10\n[functions.\"{KIND}\"]\nexec = [\"true\"]\n\
         batch = {{ size = 40 }}\n"
    );
    let site = Site::new(&text).await;
    let output = site.command(&["--check"]).output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.starts_with("forebay.toml:3: the batch handler of `test.run` would never"),
        "{text}"
    );
    let words: BTreeSet<_> = text.split_whitespace().collect();
    assert!(words.contains("prefetch") && text.contains("is 10; raise the prefetch"), "{text}");
}
