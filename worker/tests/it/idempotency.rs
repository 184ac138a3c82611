//! Jobs once for their key: on real RabbitMQ, with real stores, and workers that are killed.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use forebay_producer::Envelope;
use forebay_worker::idempotency::{
    Claim, Idempotency, Inbox, Key, MemoryStore, PostgresStore, RedisStore, Store, StoreError,
};
use forebay_worker::testing::{self, Fate, broker, postgres, redis, redis_of_its_own};
use forebay_worker::{
    Config, Context, HandlerOptions, Job, JobResult, Output, Producer, PublishOptions,
    QueueOptions, Retry, Worker, WorkerBuilder,
};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::time;

use crate::support::{Bench, Notes, PATIENCE, Work, dead_of, note, work};

const SOON: Duration = Duration::from_millis(100);

fn quick(attempts: u32) -> HandlerOptions {
    HandlerOptions::new().retry(Retry::fixed(attempts, SOON))
}

fn on_default<S: Send + Sync + 'static>(state: S) -> WorkerBuilder<S> {
    Worker::builder(state).queue("default", QueueOptions::new())
}

fn rules(store: impl Store) -> Idempotency {
    Idempotency::new(store).recheck(SOON)
}

fn keyed(key: &str) -> PublishOptions {
    PublishOptions::new().idempotency_key(key)
}

async fn twenty_times_the_same_key_run_once(store: impl Fn() -> Idempotency) {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult<String> {
        note(cx.state(), &job, &cx);
        time::sleep(SOON).await;
        Ok(format!("result of {}", cx.claim_number().unwrap()))
    }
    let worker = || on_default(notes.clone()).idempotency(store()).handle(handler);
    let mut first = Bench::start(worker()).await;
    let others: Vec<_> = (0..3).map(|_| worker().build().unwrap().start(&first.config())).collect();
    let calls = (0..20).map(|n| {
        let producer = first.producer.clone();
        async move { producer.call_with::<_, String>(&work(n), keyed("one"), PATIENCE).await }
    });
    let answers: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(notes.all().len(), 1, "{:?}", notes.all());
    let mut summaries = vec![first.drain().await];
    for other in others {
        other.controls().drain();
        summaries.push(other.finished().await.unwrap());
    }
    let sum = |of: fn(&forebay_worker::Summary) -> u64| summaries.iter().map(of).sum::<u64>();
    assert_eq!((sum(|s| s.succeeded), sum(|s| s.duplicates)), (1, 19), "{summaries:?}");
    assert_eq!((sum(|s| s.dead), sum(|s| s.retried)), (0, 0), "{summaries:?}");
}

#[tokio::test]
async fn twenty_jobs_of_one_key_on_four_workers_run_once_and_all_get_the_result_redis() {
    let server = redis().await;
    let store = || RedisStore::new(server.url()).unwrap().prefix(server.prefix());
    twenty_times_the_same_key_run_once(|| rules(store())).await;
}

#[tokio::test]
async fn twenty_jobs_of_one_key_on_four_workers_run_once_and_all_get_the_result_postgres() {
    let server = postgres().await;
    PostgresStore::new(server.url()).unwrap().migrate().await.unwrap();
    twenty_times_the_same_key_run_once(|| rules(PostgresStore::new(server.url()).unwrap())).await;
}

#[tokio::test]
async fn a_handler_that_fails_twice_runs_three_times_and_completes_once() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult<u32> {
        note(cx.state(), &job, &cx);
        match cx.attempt() {
            1 => Err(anyhow::anyhow!("not yet").into()),
            2 => panic!("nor now"),
            attempt => Ok(attempt),
        }
    }
    let worker = on_default(notes.clone()).idempotency(rules(MemoryStore::new()));
    let mut bench = Bench::start(worker.handle_with(quick(5), handler)).await;
    // Each answer is that of the third run.
    let job = work(7);
    let call = || bench.producer.call_with::<_, u32>(&job, keyed("thrice"), PATIENCE);
    assert_eq!(call().await.unwrap(), 3);
    assert_eq!(call().await.unwrap(), 3);
    assert_eq!(notes.all(), ["7#1", "7#2", "7#3"]);
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.retried, summary.duplicates), (1, 2, 1));
}

#[tokio::test]
async fn a_job_longer_than_its_lease_keeps_its_claim() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        time::sleep(Duration::from_secs(2)).await;
        Ok(())
    }
    let rules = rules(MemoryStore::new()).lease(Duration::from_millis(500));
    let mut bench =
        Bench::start(on_default(notes.clone()).idempotency(rules).handle(handler)).await;
    for _ in 0..2 {
        bench.producer.publish_with(&work(1), keyed("long")).await.unwrap();
    }
    bench.until("both are acked", |summary| summary.succeeded + summary.duplicates == 2).await;
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.duplicates, notes.all().len()), (1, 1, 1));
}

/// A memory store that can be told to fail, and that its claims were taken over.
#[derive(Default)]
struct Troubled {
    inner: MemoryStore,
    down: AtomicBool,
    taken_over: AtomicBool,
    asked: Notify,
}

impl Troubled {
    fn up(&self) -> Result<(), StoreError> {
        self.asked.notify_one();
        let down = self.down.load(Ordering::Relaxed);
        if down { Err(StoreError::because("it is down")) } else { Ok(()) }
    }
}

impl Store for Troubled {
    async fn claim(&self, key: &Key, lease: Duration) -> Result<Claim, StoreError> {
        self.up()?;
        self.inner.claim(key, lease).await
    }

    async fn renew(&self, key: &Key, number: u64, lease: Duration) -> Result<bool, StoreError> {
        self.up()?;
        if self.taken_over.swap(false, Ordering::Relaxed) {
            self.inner.release(key, number).await?;
            return Ok(false);
        }
        self.inner.renew(key, number, lease).await
    }

    async fn complete(
        &self,
        key: &Key,
        number: u64,
        result: Option<&Bytes>,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        self.up()?;
        self.inner.complete(key, number, result, keep).await
    }

    async fn release(&self, key: &Key, number: u64) -> Result<bool, StoreError> {
        self.up()?;
        self.inner.release(key, number).await
    }
}

#[tokio::test]
async fn a_run_whose_claim_was_taken_over_is_stopped_and_comes_again_without_using_an_attempt() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        if cx.state().all().len() == 1 {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
    let store = Arc::new(Troubled::default());
    store.taken_over.store(true, Ordering::Relaxed);
    let rules = rules(store).lease(Duration::from_millis(300));
    let mut bench =
        Bench::start(on_default(notes.clone()).idempotency(rules).handle(handler)).await;
    bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(2).await, ["1#1", "1#1"]);
    bench.until("it is done", |summary| summary.succeeded == 1).await;
    assert_eq!(bench.drain().await.retried, 0);
}

#[tokio::test]
async fn a_run_that_cannot_renew_its_lease_is_stopped_when_it_is_over() {
    let notes = Notes::default();
    struct App {
        notes: Notes,
        store: Arc<Troubled>,
    }
    async fn handler(job: Work, cx: Context<App>) -> JobResult {
        note(&cx.state().notes, &job, &cx);
        if cx.state().notes.all().len() == 1 {
            cx.state().store.down.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
        Ok(())
    }
    let store = Arc::new(Troubled::default());
    let rules = rules(Arc::clone(&store)).lease(Duration::from_millis(300));
    let app = App { notes: notes.clone(), store: Arc::clone(&store) };
    let mut bench = Bench::start(on_default(app).idempotency(rules).handle(handler)).await;
    bench.producer.publish(&work(1)).await.unwrap();
    bench.until("it was stopped", |summary| summary.put_off == 1).await;
    store.down.store(false, Ordering::Relaxed);
    bench.until("it is done", |summary| summary.succeeded == 1).await;
    assert_eq!(notes.all(), ["1#1", "1#1"]);
    assert_eq!(bench.drain().await.retried, 0);
}

#[tokio::test]
async fn while_the_store_is_down_no_job_runs_and_none_is_lost() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        Ok(())
    }
    let server = redis_of_its_own().await;
    let store = RedisStore::new(server.url()).unwrap().prefix(server.prefix());
    server.kill();
    let rules = rules(store).patience(Duration::from_millis(300));
    let worker = on_default(notes.clone()).idempotency(rules).handle_with(quick(1), handler);
    let mut bench = Bench::start(worker).await;
    for n in 0..3 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    bench.until("all were put off", |summary| summary.put_off >= 3).await;
    assert_eq!(notes.all(), Vec::<String>::new());
    server.start().await;
    let mut ran = notes.wait_for(3).await;
    ran.sort();
    assert_eq!(ran, ["0#1", "1#1", "2#1"]);
    bench.until("all are done", |summary| summary.succeeded == 3).await;
    let summary = bench.drain().await;
    assert_eq!((summary.dead, summary.retried), (0, 0));
}

#[tokio::test]
async fn a_thread_that_cannot_be_stopped_keeps_its_claim_until_it_ends() {
    let notes = Notes::default();
    fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        if cx.attempt() == 1 {
            std::thread::sleep(Duration::from_secs(2));
            cx.state().add("ended");
        }
        Ok(())
    }
    // Far shorter than the thread runs on.
    let rules = rules(MemoryStore::new()).lease(Duration::from_millis(500));
    let options = quick(3).timeout(Duration::from_millis(200)).concurrency(4);
    let worker = on_default(notes.clone()).idempotency(rules);
    let bench = Bench::start(worker.handle_blocking_with(options, handler)).await;
    bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(3).await, ["1#1", "ended", "1#2"]);
    bench.until("it is done", |summary| summary.succeeded == 1).await;
}

fn job(key: Option<&str>) -> Envelope {
    let mut envelope = Envelope::new(Work::KIND, "default", r#"{"n":1}"#);
    envelope.idempotency_key = key.map(str::to_owned);
    envelope
}

async fn counts_runs(_job: Work, cx: Context<Notes>) -> JobResult<usize> {
    cx.state().add("run");
    Ok(cx.state().all().len())
}

async fn fates(rules: Idempotency, options: HandlerOptions, jobs: &[Envelope]) -> Vec<Fate> {
    let worker = on_default(Notes::default()).idempotency(rules);
    let worker = worker.handle_with(options, counts_runs).build().unwrap();
    let mut fates = Vec::new();
    for job in jobs {
        fates.push(testing::run_envelope(&worker, job.clone()).await);
    }
    fates
}

fn done(value: impl Serialize) -> Fate {
    Fate::Done(json!(value))
}

#[tokio::test]
async fn a_job_without_a_key_goes_by_its_id_unless_only_keys_count() {
    let (one, other) = (job(None), job(None));
    let jobs = [one.clone(), other.clone(), one.clone()];
    let rules = || Idempotency::new(MemoryStore::new());
    let ran = fates(rules(), quick(1), &jobs).await;
    assert_eq!(ran, [done(1), done(2), done(1)]);
    let ran = fates(rules().only_with_key(), quick(1), &jobs).await;
    assert_eq!(ran, [done(1), done(2), done(3)]);
    // An id and a key of the same letters are not the same.
    let ran = fates(rules(), quick(1), &[one.clone(), job(Some(&one.id))]).await;
    assert_eq!(ran, [done(1), done(2)]);
}

#[tokio::test]
async fn a_handler_may_be_left_out() {
    let jobs = [job(Some("a")), job(Some("a"))];
    let options = quick(1).idempotent(false);
    let ran = fates(Idempotency::new(MemoryStore::new()), options, &jobs).await;
    assert_eq!(ran, [done(1), done(2)]);
}

#[tokio::test]
async fn a_result_that_is_too_large_is_not_kept_but_its_job_is_not_run_again() {
    let jobs = [job(Some("a")), job(Some("a"))];
    let rules = Idempotency::new(MemoryStore::new()).max_result(0);
    assert_eq!(fates(rules, quick(1), &jobs).await, [done(1), Fate::Done(json!(null))]);
}

#[tokio::test]
async fn a_key_that_no_store_takes_makes_a_dead_letter_that_says_so() {
    for (key, expected) in [("k".repeat(1_001), "1001 bytes"), ("a\0b".to_owned(), "NUL")] {
        let rules = Idempotency::new(MemoryStore::new());
        let fate = fates(rules, quick(5), &[job(Some(&key))]).await.remove(0);
        let Fate::Dead { reason, message } = fate else { panic!("{fate:?}") };
        assert_eq!(reason, "rejected");
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn while_the_store_is_down_a_job_is_put_off_or_runs_unprotected_as_was_asked() {
    let store = || {
        let store = Troubled::default();
        store.down.store(true, Ordering::Relaxed);
        store
    };
    let closed = Idempotency::new(store()).patience(Duration::from_millis(1));
    let fate = fates(closed, quick(5), &[job(None)]).await.remove(0);
    let Fate::Again { after, attempt: 1, message } = fate else { panic!("{fate:?}") };
    // About 10 s.
    assert!(message.is_empty() && after >= Duration::from_secs(8), "{after:?} {message}");
    let open = Idempotency::new(store()).fail_open();
    assert_eq!(fates(open, quick(5), &[job(None)]).await, [done(1)]);
}

#[test]
fn rules_that_cannot_hold_are_refused_at_build() {
    let rules = Idempotency::new(MemoryStore::new()).lease(Duration::ZERO).keep(Duration::ZERO);
    let worker = on_default(Notes::default()).idempotency(rules).handle(counts_runs);
    let faults = worker.build().unwrap_err().faults;
    assert_eq!(faults.len(), 2, "{faults:?}");
}

/// Not a test of its own: the worker process that the tests below start and kill.
#[tokio::test]
async fn child() {
    let (Ok(url), Ok(namespace), Ok(what), Ok(server)) = (
        std::env::var("FOREBAY_TEST_CHILD_URL"),
        std::env::var("FOREBAY_TEST_CHILD_NAMESPACE"),
        std::env::var("FOREBAY_TEST_CHILD_WHAT"),
        std::env::var("FOREBAY_TEST_CHILD_SERVER"),
    ) else {
        return;
    };
    let config = Config::new(&url).unwrap().namespace(&namespace).unwrap();
    let hang = std::future::pending::<()>();
    let run = match what.as_str() {
        "claim" => {
            let prefix = std::env::var("FOREBAY_TEST_CHILD_PREFIX").unwrap();
            let store = RedisStore::new(&server).unwrap().prefix(prefix);
            async fn handler(_job: Work, cx: Context<()>) -> JobResult<String> {
                println!("at {}", cx.claim_number().unwrap());
                std::future::pending().await
            }
            let worker = on_default(()).idempotency(rules(store).lease(Duration::from_secs(3)));
            worker.handle(handler).build().unwrap().start(&config)
        }
        "die" => {
            let prefix = std::env::var("FOREBAY_TEST_CHILD_PREFIX").unwrap();
            let store = RedisStore::new(&server).unwrap().prefix(prefix);
            async fn handler(_job: Work, _cx: Context<()>) -> JobResult {
                std::process::abort()
            }
            Worker::builder(())
                .queue("default", QueueOptions::new().max_crashes(3))
                .idempotency(rules(store).lease(Duration::from_millis(500)))
                .handle(handler)
                .build()
                .unwrap()
                .start(&config)
        }
        "write" => {
            async fn handler(job: Deposit, cx: Context<Inbox>) -> JobResult<i64> {
                let inbox = cx.state();
                let write = inbox.once(&cx, async |tx| {
                    deposit(&job, tx).await?;
                    println!("at written");
                    std::future::pending().await
                });
                write.await
            }
            on_default(Inbox::new(&server).unwrap()).handle(handler).build().unwrap().start(&config)
        }
        "commit" => {
            async fn handler(job: Deposit, cx: Context<Inbox>) -> JobResult<i64> {
                let inbox = cx.state();
                inbox.once(&cx, async |tx| deposit(&job, tx).await).await?;
                println!("at committed");
                std::future::pending().await
            }
            on_default(Inbox::new(&server).unwrap()).handle(handler).build().unwrap().start(&config)
        }
        other => panic!("{other}"),
    };
    hang.await;
    drop(run);
}

#[derive(Serialize, Deserialize)]
struct Deposit {
    cents: i64,
}

impl Job for Deposit {
    const KIND: &'static str = "money.deposit";
}

async fn deposit(job: &Deposit, tx: &deadpool_postgres::Transaction<'_>) -> JobResult<i64> {
    tx.execute("INSERT INTO deposits (cents) VALUES ($1)", &[&job.cents]).await?;
    Ok(tx.query_one("SELECT sum(cents)::bigint FROM deposits", &[]).await?.get(0))
}

fn worker_process(broker: &testing::Broker, what: &str, server: &str, prefix: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["idempotency::child", "--exact", "--nocapture"])
        .env("FOREBAY_TEST_CHILD_URL", broker.url())
        .env("FOREBAY_TEST_CHILD_NAMESPACE", broker.namespace())
        .env("FOREBAY_TEST_CHILD_WHAT", what)
        .env("FOREBAY_TEST_CHILD_SERVER", server)
        .env("FOREBAY_TEST_CHILD_PREFIX", prefix)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Starts a worker that gets stuck, and waits until it is where it was to get. Returns what it said.
async fn stuck(
    broker: &testing::Broker,
    what: &str,
    server: &str,
    prefix: &str,
) -> (Child, String) {
    let mut child = worker_process(broker, what, server, prefix);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let wait = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, said)) = line.split_once("at ") {
                return said.to_owned();
            }
        }
        panic!("the child ended");
    };
    let said = time::timeout(PATIENCE, wait).await.expect("the child gets there");
    (child, said)
}

#[tokio::test]
async fn when_a_worker_is_killed_in_the_middle_another_takes_over_after_the_lease() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult<String> {
        note(cx.state(), &job, &cx);
        Ok(cx.claim_number().unwrap().to_string())
    }
    let (broker, server) = (broker().await, redis().await);
    broker.owns("default");
    let producer = Producer::new(&broker.config());
    let call = {
        let producer = producer.clone();
        async move { producer.call_with::<_, String>(&work(1), keyed("killed"), PATIENCE).await }
    };
    let call = tokio::spawn(call);
    let (mut child, first) = stuck(&broker, "claim", server.url(), server.prefix()).await;
    child.kill().await.unwrap();
    let store = RedisStore::new(server.url()).unwrap().prefix(server.prefix());
    let worker = on_default(notes.clone()).idempotency(rules(store)).handle(handler);
    let mut bench = Bench::on(broker, worker);
    let second = call.await.unwrap().unwrap();
    assert!(second.parse::<u64>().unwrap() > first.parse::<u64>().unwrap(), "{second} {first}");
    assert_eq!(notes.all(), ["1#1"]);
    assert_eq!(bench.drain().await.succeeded, 1);
}

#[tokio::test]
async fn a_job_that_kills_its_process_is_dead_in_the_end_though_it_waits_for_its_own_claims() {
    let (broker, server) = (broker().await, redis().await);
    broker.owns("default");
    Producer::new(&broker.config()).publish(&work(1)).await.unwrap();
    let config = broker.config();
    let dead = dead_of(&config, "default", 1);
    let lives = async {
        loop {
            let mut child = worker_process(&broker, "die", server.url(), server.prefix());
            child.wait().await.unwrap();
        }
    };
    let letters = tokio::select! { letters = dead => letters, () = lives => Vec::new() };
    assert_eq!(letters[0].reason, "crashed");
}

async fn deposits_after_a_kill(what: &str) -> (i64, forebay_worker::Summary, String) {
    let (broker, server) = (broker().await, postgres().await);
    broker.owns("default");
    let inbox = Inbox::new(server.url()).unwrap();
    inbox.migrate().await.unwrap();
    server.sql("CREATE TABLE deposits (cents bigint NOT NULL)").await;
    let producer = Producer::new(&broker.config());
    let call = tokio::spawn(async move {
        producer.call_with::<_, i64>(&Deposit { cents: 5 }, keyed("five"), PATIENCE).await
    });
    let (mut child, _) = stuck(&broker, what, server.url(), "").await;
    child.kill().await.unwrap();
    let between = server.sql("SELECT count(*) FROM deposits").await;
    async fn handler(job: Deposit, cx: Context<Inbox>) -> JobResult<i64> {
        let inbox = cx.state();
        inbox.once(&cx, async |tx| deposit(&job, tx).await).await
    }
    let mut bench = Bench::on(broker, on_default(inbox).handle(handler));
    let answer = call.await.unwrap().unwrap();
    let summary = bench.drain().await;
    assert_eq!(server.sql("SELECT count(*), sum(cents) FROM deposits").await, "1|5");
    (answer, summary, between)
}

#[tokio::test]
async fn a_worker_killed_before_the_commit_leaves_nothing_behind() {
    let (answer, summary, between) = deposits_after_a_kill("write").await;
    assert_eq!((answer, between.as_str()), (5, "0"));
    assert_eq!((summary.succeeded, summary.duplicates), (1, 0));
}

#[tokio::test]
async fn a_worker_killed_between_commit_and_ack_has_written_once() {
    let (answer, summary, between) = deposits_after_a_kill("commit").await;
    assert_eq!((answer, between.as_str()), (5, "1"));
    assert_eq!((summary.succeeded, summary.duplicates), (0, 1));
}

#[tokio::test]
async fn what_a_failed_handler_wrote_is_rolled_back_with_its_mark() {
    let server = postgres().await;
    let inbox = Inbox::new(server.url()).unwrap();
    inbox.migrate().await.unwrap();
    server.sql("CREATE TABLE deposits (cents bigint NOT NULL)").await;
    async fn handler(job: Deposit, cx: Context<Inbox>) -> JobResult<i64> {
        let inbox = cx.state();
        let write = inbox.once(&cx, async |tx| {
            let sum = deposit(&job, tx).await?;
            if cx.attempt() == 1 { Err(anyhow::anyhow!("once more").into()) } else { Ok(sum) }
        });
        write.await
    }
    let worker = on_default(inbox).handle_with(quick(3), handler).build().unwrap();
    let mut envelope = Envelope::new(Deposit::KIND, "default", r#"{"cents":5}"#);
    let fate = testing::run_envelope(&worker, envelope.clone()).await;
    let Fate::Again { attempt: 2, message, .. } = fate else { panic!("{fate:?}") };
    assert_eq!(message, "once more");
    envelope.attempt = 2;
    for _ in 0..3 {
        assert_eq!(testing::run_envelope(&worker, envelope.clone()).await, done(5));
    }
    assert_eq!(server.sql("SELECT count(*) FROM deposits").await, "1");
}

#[tokio::test]
async fn a_second_run_waits_while_the_first_is_in_its_transaction() {
    let server = postgres().await;
    let inbox = Inbox::new(server.url()).unwrap();
    inbox.migrate().await.unwrap();
    struct App {
        inbox: Inbox,
        inside: Notify,
        go_on: Notify,
    }
    async fn handler(_job: Work, cx: Context<Arc<App>>) -> JobResult<u32> {
        let app = cx.state();
        let wait = app.inbox.once(&cx, async |_tx| {
            app.inside.notify_one();
            app.go_on.notified().await;
            Ok(7)
        });
        wait.await
    }
    let app = Arc::new(App { inbox, inside: Notify::new(), go_on: Notify::new() });
    let worker = Arc::new(on_default(Arc::clone(&app)).handle(handler).build().unwrap());
    let first = {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move { testing::run_envelope(&worker, job(Some("a"))).await })
    };
    app.inside.notified().await;
    let second = testing::run_envelope(&worker, job(Some("a"))).await;
    assert!(matches!(second, Fate::Again { attempt: 1, .. }), "{second:?}");
    app.go_on.notify_one();
    assert_eq!(first.await.unwrap(), done(7));
    assert_eq!(testing::run_envelope(&worker, job(Some("a"))).await, done(7));
}

#[tokio::test]
async fn middleware_sees_runs_and_no_duplicates() {
    let notes = Notes::default();
    async fn notes_runs(
        cx: Context<Notes>,
        next: forebay_worker::Next<Notes>,
    ) -> JobResult<Output> {
        cx.state().add("through");
        next.run(cx).await
    }
    let worker = on_default(notes.clone()).middleware(notes_runs);
    let worker = worker.idempotency(Idempotency::new(MemoryStore::new())).handle(counts_runs);
    let worker = worker.build().unwrap();
    for _ in 0..3 {
        testing::run_envelope(&worker, job(Some("a"))).await;
    }
    assert_eq!(notes.all(), ["through", "run"]);
}
