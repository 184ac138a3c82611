//! The settlement table, line by line.

use std::time::Duration;

use forebay_producer::wire::envelope::now_ms;
use forebay_producer::{Destination, Envelope, Producer};
use forebay_worker::{
    CallError, Context, HandlerOptions, Job, JobError, JobResult, Output, PublishOptions,
    QueueOptions, Retry, Worker, WorkerBuilder,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::support::{Bench, Notes, PATIENCE, Work, dead_of, note, raw_channel, work};

fn quick(attempts: u32) -> HandlerOptions {
    HandlerOptions::new().retry(Retry::fixed(attempts, Duration::from_millis(100)))
}

fn on_default(notes: &Notes) -> WorkerBuilder<Notes> {
    Worker::builder(notes.clone()).queue("default", QueueOptions::new())
}

async fn send_raw(producer: &Producer, change: impl FnOnce(&mut Envelope)) {
    let mut envelope = Envelope::new("work.do", "default", r#"{"n":1}"#);
    change(&mut envelope);
    let deadline = Instant::now() + PATIENCE;
    producer.send(&envelope, Destination::Queue, deadline).await.unwrap();
}

#[tokio::test]
async fn a_job_that_succeeds_is_acked() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        Ok(())
    }
    let mut bench = Bench::start(on_default(&notes).handle(handler)).await;
    bench.producer.publish(&work(7)).await.unwrap();
    assert_eq!(notes.wait_for(1).await, ["7#1"]);
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.given_back), (1, 0));
    assert_eq!(bench.ready("default").await, 0);
}

#[tokio::test]
async fn an_error_is_retried_while_attempts_are_left_and_then_dead_with_its_whole_history() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        let run = format!("run {}", cx.attempt());
        Err(JobError::retry(anyhow::anyhow!("smtp is down").context(run)))
    }
    let worker = on_default(&notes).name("tester/1").handle_with(quick(3), handler);
    let bench = Bench::start(worker).await;
    let before = now_ms();
    let receipt = bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(3).await, ["1#1", "1#2", "1#3"]);
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!((letter.reason.as_str(), &letter.envelope.id), ("failed", &receipt.id));
    let failures = &letter.envelope.failures;
    let messages: Vec<_> = failures.iter().map(|failure| failure.message.as_str()).collect();
    assert_eq!(messages, ["run 1: smtp is down", "run 2: smtp is down", "run 3: smtp is down"]);
    assert!(failures.iter().all(|f| f.worker == "tester/1" && f.at_ms >= before));
    assert!(letter.died_at_ms.is_some_and(|at| at >= before));
}

#[tokio::test]
async fn forty_retries_come_in_order_and_what_is_kept_of_them_does_not_grow() {
    const RUNS: u32 = 41;
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        Err(JobError::retry(anyhow::anyhow!("{}", "smtp is down ".repeat(1_000))))
    }
    let bench = Bench::start(on_default(&notes).handle_with(quick(RUNS), handler)).await;
    bench.producer.publish(&work(1)).await.unwrap();
    let expected: Vec<_> = (1..=RUNS).map(|attempt| format!("1#{attempt}")).collect();
    assert_eq!(notes.wait_for(RUNS as usize).await, expected);
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!((letter.reason.as_str(), letter.envelope.attempt), ("failed", RUNS));

    // The newest failures, as many as fit.
    let failures = &letter.envelope.failures;
    let attempts: Vec<_> = failures.iter().map(|failure| failure.attempt).collect();
    assert!(attempts.len() > 1, "{attempts:?}");
    assert_eq!(attempts, Vec::from_iter(RUNS + 1 - attempts.len() as u32..=RUNS));
    let bytes: usize = failures.iter().map(|failure| failure.message.len()).sum();
    assert!(bytes <= 32 * 1024, "{bytes} bytes of {} failures", failures.len());

    // Each trip down the ladder leaves the broker's marks, and none of them goes on.
    let channel = raw_channel(&bench.config()).await;
    let dead = bench.config().topology().dead_queue("default");
    let got = channel.basic_get(dead.as_str().into(), Default::default()).await.unwrap().unwrap();
    let headers = got.properties.headers().clone().unwrap_or_default();
    let names: Vec<_> = headers.inner().keys().map(|name| name.as_str()).collect();
    assert!(!names.iter().any(|name| name.contains("death")), "{names:?}");
    assert_eq!(notes.all().len(), RUNS as usize, "not run again");
}

#[tokio::test]
async fn a_rejected_job_is_dead_at_once() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        Err(JobError::reject(anyhow::anyhow!("no such account")))
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    bench.producer.publish(&work(1)).await.unwrap();
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!((letter.reason.as_str(), notes.all().len()), ("rejected", 1));
    assert_eq!(letter.envelope.failures[0].message, "no such account");
}

#[tokio::test]
async fn a_panic_is_retried_and_keeps_its_reason_when_it_is_dead() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        panic!("index out of thin air");
    }
    let bench = Bench::start(on_default(&notes).handle_with(quick(2), handler)).await;
    bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(2).await, ["1#1", "1#2"]);
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!(letter.reason, "panic");
    assert!(letter.envelope.failures[0].message.contains("index out of thin air"));
}

#[tokio::test]
async fn a_handler_that_hangs_is_stopped_at_its_timeout() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        std::future::pending().await
    }
    let options = quick(1).timeout(Duration::from_millis(200));
    let bench = Bench::start(on_default(&notes).handle_with(options, handler)).await;
    bench.producer.publish(&work(1)).await.unwrap();
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!(letter.reason, "timeout");
    assert!(letter.envelope.failures[0].message.contains("timeout of 200ms"));
}

#[tokio::test]
async fn a_payload_that_is_not_json_is_dead_at_once_and_stays_as_it_came() {
    let notes = Notes::default();
    async fn handler(_job: Work, _cx: Context<Notes>) -> JobResult {
        Ok(())
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    for payload in [&b"{not json"[..], b"\xff\xfe\x00", b""] {
        send_raw(&bench.producer, |envelope| envelope.payload = payload.into()).await;
    }
    bench.producer.publish(&work(1)).await.unwrap();
    let letters = bench.dead("default", 3).await;
    assert!(letters.iter().all(|letter| letter.reason == "undecodable"), "{letters:#?}");
    assert!(letters.iter().any(|letter| letter.envelope.payload[..] == b"\xff\xfe\x00"[..]));
}

#[tokio::test]
async fn a_job_whose_time_has_passed_is_dead_and_not_run() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        Ok(())
    }
    let mut bench = Bench::start(on_default(&notes).handle(handler)).await;
    send_raw(&bench.producer, |envelope| envelope.expires_at_ms = Some(now_ms() - 1)).await;
    assert_eq!(bench.dead("default", 1).await[0].reason, "expired");
    bench.drain().await;
    assert_eq!(notes.all(), Vec::<String>::new());
}

/// 1 s, 5 s and 25 s of grace are shortened here by starting with two of them used.
#[tokio::test]
async fn an_unknown_kind_waits_for_a_deploy_before_it_is_dead() {
    let notes = Notes::default();
    async fn handler(_job: Work, _cx: Context<Notes>) -> JobResult {
        Ok(())
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    let unknown = |graces| {
        move |envelope: &mut Envelope| {
            envelope.kind = Some("work.other".to_owned());
            envelope.graces = graces;
        }
    };
    send_raw(&bench.producer, unknown(3)).await;
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!(letter.reason, "unknown_kind");
    let message = &letter.envelope.failures[0].message;
    assert!(message.contains("`work.other`") && message.contains("work.do"), "{message}");
    assert_eq!(letter.envelope.attempt, 1);
}

#[derive(Debug, Serialize, Deserialize)]
struct Newer {
    n: u64,
}

impl Job for Newer {
    const KIND: &'static str = "work.newer";
}

#[tokio::test]
async fn a_job_of_an_unknown_kind_is_run_by_the_deploy_that_brings_its_handler() {
    let notes = Notes::default();
    async fn handler(_job: Work, _cx: Context<Notes>) -> JobResult {
        Ok(())
    }
    let mut old = Bench::start(on_default(&notes).handle(handler)).await;
    old.producer.publish(&Newer { n: 1 }).await.unwrap();
    old.until("it was put off", |summary| summary.put_off == 1).await;
    old.drain().await;

    async fn newer(job: Newer, cx: Context<Notes>) -> JobResult {
        cx.state().add(format!("newer {} attempt {}", job.n, cx.attempt()));
        Ok(())
    }
    let new = on_default(&notes).handle(newer).build().unwrap();
    let running = new.start(&old.config());
    assert_eq!(notes.wait_for(1).await, ["newer 1 attempt 1"]);
    running.controls().drain();
    running.finished().await.unwrap();
}

#[tokio::test]
async fn valid_json_of_another_shape_is_treated_like_an_unknown_kind() {
    let notes = Notes::default();
    async fn handler(_job: Work, _cx: Context<Notes>) -> JobResult {
        Ok(())
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    send_raw(&bench.producer, |envelope| {
        envelope.payload = r#"{"n":"seven"}"#.into();
        envelope.graces = 3;
    })
    .await;
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!(letter.reason, "unknown_kind");
    let message = &letter.envelope.failures[0].message;
    assert!(message.contains("not a `work.do`") && message.contains('n'), "{message}");
}

#[tokio::test]
async fn a_message_without_type_headers_and_id_gets_the_default_kind() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        cx.state().add(format!("{} id of {} bytes", job.n, cx.id().len()));
        Ok(())
    }
    let worker = Worker::builder(notes.clone())
        .queue("default", QueueOptions::new().default_kind("work.do"))
        .handle(handler);
    let bench = Bench::start(worker).await;
    bench.consuming("default").await;
    bench.publish_bare(r#"{"n":5}"#).await;
    assert_eq!(notes.wait_for(1).await, ["5 id of 36 bytes"]);
}

#[tokio::test]
async fn a_message_without_type_on_a_queue_without_default_kind_is_dead_with_the_remedy() {
    let notes = Notes::default();
    async fn handler(_job: Work, _cx: Context<Notes>) -> JobResult {
        Ok(())
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    send_raw(&bench.producer, |envelope| {
        envelope.kind = None;
        envelope.graces = 3;
    })
    .await;
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!(letter.reason, "unknown_kind");
    assert!(letter.envelope.failures[0].message.contains("default_kind"));
}

#[tokio::test]
async fn retry_after_overrides_the_policy_and_defer_uses_no_attempt() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        match cx.state().all().len() {
            1 => Err(JobError::defer(Duration::from_millis(100))),
            2 => Err(JobError::retry_after(Duration::from_millis(100))),
            _ => Ok(()),
        }
    }
    // The policy alone would wait an hour.
    let hour = Retry::fixed(2, Duration::from_secs(3600));
    let worker = on_default(&notes).handle_with(HandlerOptions::new().retry(hour), handler);
    let bench = Bench::start(worker).await;
    bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(3).await, ["1#1", "1#1", "1#2"]);
}

#[tokio::test]
async fn a_caller_gets_the_result_or_the_reason() {
    let notes = Notes::default();
    async fn handler(job: Work, _cx: Context<Notes>) -> JobResult<u64> {
        match job.n {
            0 => Err(JobError::reject(anyhow::anyhow!("zero is nothing"))),
            n => Ok(n * 2),
        }
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    let doubled: u64 = bench.producer.call(&work(21), PATIENCE).await.unwrap();
    assert_eq!(doubled, 42);
    let error = bench.producer.call::<_, u64>(&work(0), PATIENCE).await.unwrap_err();
    let CallError::Dead { reason, message, .. } = error else { panic!("{error}") };
    assert_eq!((reason.as_str(), message.as_str()), ("rejected", "zero is nothing"));
}

#[tokio::test]
async fn a_reply_address_that_is_a_job_queue_gets_no_answer_and_the_job_is_fine() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult<u64> {
        note(cx.state(), &job, &cx);
        Ok(job.n)
    }
    let mut bench = Bench::start(on_default(&notes).handle(handler)).await;
    let own_queue = bench.config().topology().queue("default");
    send_raw(&bench.producer, |envelope| envelope.reply_to = Some(own_queue)).await;
    let gone = bench.config().topology().reply_queue("nobody");
    send_raw(&bench.producer, |envelope| envelope.reply_to = Some(gone)).await;
    notes.wait_for(2).await;
    bench.until("both are done", |summary| summary.succeeded == 2).await;
    bench.drain().await;
    assert_eq!((notes.all().len(), bench.ready("default").await), (2, 0));
}

#[tokio::test]
async fn headers_of_the_senders_own_survive_retry_and_death() {
    let notes = Notes::default();
    async fn handler(_job: Work, cx: Context<Notes>) -> JobResult {
        cx.state().add(cx.header("tenant").unwrap_or_default());
        Err(anyhow::anyhow!("no").into())
    }
    let bench = Bench::start(on_default(&notes).handle_with(quick(2), handler)).await;
    let options = PublishOptions::new().header("tenant", "acme").idempotency_key("order-1");
    bench.producer.publish_with(&work(1), options).await.unwrap();
    assert_eq!(notes.wait_for(2).await, ["acme", "acme"]);
    let envelope = bench.dead("default", 1).await.remove(0).envelope;
    assert_eq!(envelope.header("tenant").as_deref(), Some("acme"));
    assert_eq!(envelope.idempotency_key.as_deref(), Some("order-1"));
}

#[tokio::test]
async fn a_blocking_handler_runs_beside_the_async_ones_and_its_panic_is_caught() {
    let notes = Notes::default();
    fn handler(job: Work, cx: Context<Notes>) -> JobResult<u64> {
        note(cx.state(), &job, &cx);
        assert_ne!(job.n, 13, "unlucky");
        Ok(job.n + 1)
    }
    let worker = on_default(&notes).handle_blocking_with(quick(1), handler);
    let bench = Bench::start(worker).await;
    let answer: u64 = bench.producer.call(&work(1), PATIENCE).await.unwrap();
    assert_eq!(answer, 2);
    bench.producer.publish(&work(13)).await.unwrap();
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!(letter.reason, "panic");
    assert!(letter.envelope.failures[0].message.contains("unlucky"));
}

#[tokio::test]
async fn a_blocking_handler_of_a_kind_known_at_run_time_is_held_to_the_same() {
    let notes = Notes::default();
    let handler = |payload: bytes::Bytes, cx: Context<Notes>| {
        cx.state().add(format!("begins {}", cx.id()));
        assert_ne!(&payload[..], br#"{"n":13}"#, "unlucky");
        // Runs on long after its timeout.
        std::thread::sleep(Duration::from_secs(2));
        cx.state().add("ends");
        Ok(Output::none())
    };
    let one = quick(1).timeout(Duration::from_millis(500)).concurrency(1);
    let bench = Bench::start(on_default(&notes).handle_raw_blocking("work.do", one, handler)).await;
    let slow = bench.producer.publish(&work(1)).await.unwrap().id;
    notes.wait_for(1).await;
    let unlucky = bench.producer.publish(&work(13)).await.unwrap().id;
    let begins = |id: &str| format!("begins {id}");
    assert_eq!(notes.wait_for(3).await, [begins(&slow), "ends".to_owned(), begins(&unlucky)]);
    let mut letters = bench.dead("default", 2).await;
    letters.sort_by_key(|letter| letter.reason.to_string());
    assert_eq!(letters[0].reason, "panic");
    assert!(letters[0].envelope.failures[0].message.contains("unlucky"));
    assert_eq!(letters[1].reason, "timeout");
}

#[tokio::test]
async fn the_brokers_own_dead_lettering_takes_a_job_whose_copy_is_refused() {
    let notes = Notes::default();
    async fn handler(_job: Work, _cx: Context<Notes>) -> JobResult {
        Err(JobError::reject(anyhow::anyhow!("no")))
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    bench.consuming("default").await;
    // Larger than a copy may be: a foreign publisher with another limit put it there.
    let limit = bench.config().payload_limit(100);
    let strict = on_default(&notes).handle(handler).build().unwrap().start(&limit);
    bench.controls.pause("default");
    bench.idle("default").await;
    let large = format!(r#"{{"n":1,"padding":"{}"}}"#, "x".repeat(200));
    send_raw(&bench.producer, |envelope| envelope.payload = large.into()).await;
    let letter = dead_of(&bench.config(), "default", 1).await.remove(0);
    assert_eq!(letter.reason, "broker: rejected");
    strict.controls().drain();
    strict.finished().await.unwrap();
}

#[tokio::test]
async fn middleware_wraps_every_handler_outermost_first() {
    use forebay_worker::{Next, Output};
    let notes = Notes::default();
    async fn outer(cx: Context<Notes>, next: Next<Notes>) -> JobResult<Output> {
        cx.state().add("outer in");
        let result = next.run(cx.clone()).await;
        cx.state().add("outer out");
        result
    }
    async fn inner(cx: Context<Notes>, next: Next<Notes>) -> JobResult<Output> {
        cx.state().add("inner");
        if cx.attempt() == 1 {
            return Err(anyhow::anyhow!("not yet").into());
        }
        next.run(cx).await
    }
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        Ok(())
    }
    let worker =
        on_default(&notes).middleware(outer).middleware(inner).handle_with(quick(2), handler);
    let bench = Bench::start(worker).await;
    bench.producer.publish(&work(1)).await.unwrap();
    let expected = ["outer in", "inner", "outer out", "outer in", "inner", "1#2", "outer out"];
    assert_eq!(notes.wait_for(expected.len()).await, expected);
}

#[tokio::test]
async fn an_error_that_panics_when_it_is_shown_costs_no_place() {
    #[derive(Debug)]
    struct Rude;
    impl std::fmt::Display for Rude {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("not in this company")
        }
    }
    impl std::error::Error for Rude {}
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        if job.n == 1 { Err(Rude.into()) } else { Ok(()) }
    }
    let one = QueueOptions::new().concurrency(1).prefetch(1);
    let worker = Worker::builder(notes.clone()).queue("default", one).handle(handler);
    let bench = Bench::start(worker).await;
    bench.producer.publish(&work(1)).await.unwrap();
    bench.producer.publish(&work(2)).await.unwrap();
    // With one place and one delivery at a time, the second runs only if the first is settled.
    assert_eq!(notes.wait_for(2).await, ["1#1", "2#1"]);
    assert_eq!(bench.dead("default", 1).await[0].reason, "broker: rejected");
}

#[tokio::test]
async fn a_thread_that_cannot_be_stopped_keeps_its_place_and_the_next_job_its_time() {
    let notes = Notes::default();
    fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        if job.n == 1 {
            // Runs on long after its timeout.
            std::thread::sleep(Duration::from_secs(2));
            cx.state().add("1 ends");
        }
        Ok(())
    }
    let one = quick(1).timeout(Duration::from_millis(500)).concurrency(1);
    let mut bench = Bench::start(on_default(&notes).handle_blocking_with(one, handler)).await;
    bench.producer.publish(&work(1)).await.unwrap();
    notes.wait_for(1).await;
    bench.producer.publish(&work(2)).await.unwrap();
    assert_eq!(notes.wait_for(3).await, ["1#1", "1 ends", "2#1"]);
    bench.until("the second is done", |summary| summary.succeeded == 1).await;
    assert_eq!(bench.drain().await.dead, 1);
}
