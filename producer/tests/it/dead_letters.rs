//! Dead letters are looked at without harm, and moved without loss however it is interrupted.

use std::collections::BTreeSet;
use std::time::Duration;

use forebay_producer::testing::{Broker, Proxy, broker};
use forebay_producer::wire::envelope::now_ms;
use forebay_producer::{
    DeadError, DeadLetters, DeadMark, Destination, Done, Envelope, Failure, Filter, Pile, Producer,
    Reason, RedriveOptions,
};
use futures_util::{StreamExt, future};
use lapin::options::{BasicGetOptions, BasicRejectOptions};
use tokio::sync::Notify;

use crate::support::{
    Plain, eventually, header_names, ids, publish_to, read, soon, through, within,
};

struct Bench {
    broker: Broker,
    producer: Producer,
    letters: DeadLetters,
    plain: Plain,
}

impl Bench {
    async fn new() -> Self {
        let broker = broker().await;
        Self {
            producer: Producer::new(&broker.config()),
            letters: DeadLetters::new(&broker.config()),
            plain: Plain::at(broker.url()).await,
            broker,
        }
    }

    /// A bench with `count` dead letters, ids from 0.
    async fn with(count: u64) -> Self {
        let bench = Self::new().await;
        let all = (0..count).map(|n| bench.bury(letter(n, "note.take", Reason::Failed)));
        future::join_all(all).await;
        bench
    }

    async fn bury(&self, envelope: Envelope) {
        self.producer.send(&envelope, Destination::DeadLetters, soon()).await.unwrap();
    }

    async fn list(&self, filter: &Filter) -> Vec<String> {
        let listing = self.letters.list(&notes(), filter, 1_000).await.unwrap();
        listing.letters.into_iter().map(|letter| letter.envelope.id).collect()
    }

    async fn redrive(&self, filter: &Filter, limit: u16) -> Done {
        let (pile, options) = (notes(), RedriveOptions::default());
        let redriven = self.letters.redrive(&pile, filter, limit, &options, &self.producer, |_| {});
        redriven.await.unwrap()
    }

    fn queue(&self) -> String {
        self.broker.config().topology().queue("notes")
    }

    fn dead_queue(&self) -> String {
        self.broker.config().topology().dead_queue("notes")
    }

    /// Ids in the queue and in its dead letters together.
    async fn everywhere(&self) -> BTreeSet<String> {
        let mut all = ids(&self.plain.drain(&self.queue()).await);
        all.extend(ids(&self.plain.drain(&self.dead_queue()).await));
        all
    }
}

fn notes() -> Pile {
    Pile::Queue("notes".to_owned())
}

fn letter(n: u64, kind: &str, reason: Reason) -> Envelope {
    let mut envelope = Envelope::new(kind, "notes", format!("{{\"n\":{n}}}"));
    envelope.id = n.to_string();
    envelope.attempt = 5;
    envelope.failures =
        vec![Failure::new(now_ms(), 5, reason.clone(), "smtp is down", "node-1/42")];
    envelope.dead = Some(DeadMark::new(reason, now_ms()));
    envelope
}

fn all(count: u64) -> BTreeSet<String> {
    (0..count).map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn a_letter_shows_the_job_with_its_history() {
    let bench = Bench::with(1).await;
    let listing = bench.letters.list(&notes(), &Filter::default(), 10).await.unwrap();
    assert_eq!((listing.looked_at, listing.total), (1, 1));
    let letter = &listing.letters[0];
    assert_eq!((letter.reason.as_str(), letter.envelope.attempt), ("failed", 5));
    assert_eq!(letter.died_at_ms, letter.envelope.dead.as_ref().map(|dead| dead.at_ms));
    assert_eq!(letter.envelope.failures[0].message, "smtp is down");
}

#[tokio::test]
async fn a_filter_picks_by_kind_reason_and_id() {
    let bench = Bench::new().await;
    bench.bury(letter(1, "note.take", Reason::Failed)).await;
    bench.bury(letter(2, "note.take", Reason::Panic)).await;
    bench.bury(letter(3, "note.drop", Reason::Failed)).await;
    let filter = |kind: Option<&str>, reason: Option<&str>, id: Option<&str>| {
        let mut filter = Filter::default();
        filter.kind = kind.map(str::to_owned);
        filter.reason = reason.map(str::to_owned);
        filter.id = id.map(str::to_owned);
        filter
    };
    for (filter, expected) in [
        (filter(None, None, None), vec!["1", "2", "3"]),
        (filter(Some("note.take"), None, None), vec!["1", "2"]),
        (filter(None, Some("failed"), None), vec!["1", "3"]),
        (filter(Some("note.take"), Some("failed"), None), vec!["1"]),
        (filter(None, None, Some("2")), vec!["2"]),
        (filter(Some("note.drop"), None, Some("2")), vec![]),
    ] {
        assert_eq!(bench.list(&filter).await, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn a_filter_picks_by_age() {
    let bench = Bench::new().await;
    let mut old = letter(1, "note.take", Reason::Failed);
    old.dead = Some(DeadMark::new(Reason::Failed, now_ms() - 3_600_000));
    bench.bury(old).await;
    bench.bury(letter(2, "note.take", Reason::Failed)).await;
    let (mut older, mut newer) = (Filter::default(), Filter::default());
    older.older_than = Some(Duration::from_secs(1_800));
    newer.newer_than = Some(Duration::from_secs(1_800));
    assert_eq!(bench.list(&older).await, ["1"]);
    assert_eq!(bench.list(&newer).await, ["2"]);
}

#[tokio::test]
async fn what_the_broker_dead_lettered_itself_is_listed_and_redriven() {
    let bench = Bench::new().await;
    publish_to(&bench.producer, "notes", "7").await.unwrap();
    let mut consumer = bench.plain.consume(&bench.queue()).await;
    let delivery = consumer.next().await.unwrap().unwrap();
    delivery.acker.reject(BasicRejectOptions { requeue: false }).await.unwrap();
    let mut found = Vec::new();
    eventually("the broker's dead letter", async || {
        found = bench.letters.list(&notes(), &Filter::default(), 10).await.unwrap().letters;
        !found.is_empty()
    })
    .await;
    assert_eq!(
        (found[0].envelope.id.as_str(), found[0].reason.as_str()),
        ("7", "broker: rejected")
    );
    let age = now_ms().abs_diff(found[0].died_at_ms.expect("x-death has a time"));
    assert!(age < 3_600_000, "{age}");

    let mut filter = Filter::default();
    filter.reason = Some("broker: rejected".to_owned());
    assert_eq!(bench.redrive(&filter, 10).await.done, 1);
    let again = consumer.next().await.unwrap().unwrap();
    let names = header_names(&again);
    assert!(!names.iter().any(|name| name.starts_with("x-")), "{names:?}");
}

/// With the broker's default limit the 21st look would delete them.
#[tokio::test]
async fn looking_thirty_times_removes_nothing() {
    let bench = Bench::with(3).await;
    for look in 1..=30 {
        let listing = bench.letters.list(&notes(), &Filter::default(), 10).await.unwrap();
        assert_eq!((listing.letters.len(), listing.total), (3, 3), "look {look}");
    }
}

/// A look that dies with its connection counts as a delivery on every version, a nack on some.
#[tokio::test]
async fn thirty_looks_that_are_cut_short_remove_nothing() {
    let bench = Bench::with(3).await;
    for look in 1..=30 {
        let cut_short = Plain::at(bench.broker.url()).await;
        let options = BasicGetOptions::default();
        let got = cut_short.channel.basic_get(bench.dead_queue().as_str().into(), options).await;
        assert!(got.unwrap().is_some(), "look {look}");
        cut_short.channel.close(200, "cut short".into()).await.unwrap();
    }
    eventually("three letters", async || bench.plain.count(&bench.dead_queue()).await == Some(3))
        .await;
}

#[tokio::test]
async fn a_look_says_how_many_there_are_and_reads_no_more_than_its_limit() {
    let bench = Bench::with(25).await;
    for limit in [0, 1, 10, 25, 100] {
        let listing = bench.letters.list(&notes(), &Filter::default(), limit).await.unwrap();
        let seen = u64::from(limit).min(25);
        assert_eq!((listing.looked_at, listing.total), (seen, 25), "limit {limit}");
        assert_eq!(listing.letters.len() as u64, seen);
    }
}

#[tokio::test]
async fn an_empty_pile_is_an_empty_list_and_a_missing_one_an_error() {
    let bench = Bench::new().await;
    let missing = bench.letters.list(&notes(), &Filter::default(), 10).await.unwrap_err();
    assert!(matches!(missing, DeadError::Missing { .. }), "{missing}");
    bench.producer.declare("notes", Default::default()).await.unwrap();
    let listing = bench.letters.list(&notes(), &Filter::default(), 10).await.unwrap();
    assert_eq!((listing.letters.len(), listing.looked_at, listing.total), (0, 0, 0));
}

/// More than the broker hands out to one consumer at a time.
#[tokio::test]
async fn three_thousand_letters_can_be_looked_at_and_redriven_in_one_go() {
    let bench = Bench::with(3_000).await;
    let listing = bench.letters.list(&notes(), &Filter::default(), 4_000).await.unwrap();
    assert_eq!((listing.letters.len(), listing.total), (3_000, 3_000));
    let done = within("a redrive", bench.redrive(&Filter::default(), 4_000)).await;
    assert_eq!((done.done, done.left, done.failed.len()), (3_000, 0, 0));
    assert_eq!(ids(&bench.plain.drain(&bench.queue()).await), all(3_000));
}

#[tokio::test]
async fn a_redriven_job_starts_afresh_and_remembers_what_went_wrong() {
    let bench = Bench::with(1).await;
    let done = bench.redrive(&Filter::default(), 10).await;
    assert_eq!((done.done, done.left, done.total, done.failed.len()), (1, 0, 1, 0));
    let delivery = bench.plain.drain(&bench.queue()).await.remove(0);
    let envelope = read(&delivery);
    assert_eq!((envelope.attempt, envelope.crashes, envelope.redrives), (1, 0, 1));
    assert_eq!((envelope.dead, envelope.failures.len()), (None, 1));
    let names = header_names(&delivery);
    assert!(!names.iter().any(|name| name.starts_with("x-")), "{names:?}");
    assert_eq!(bench.plain.count(&bench.dead_queue()).await, Some(0));
}

#[tokio::test]
async fn a_redrive_moves_only_what_the_filter_means() {
    let bench = Bench::with(10).await;
    let mut filter = Filter::default();
    filter.id = Some("4".to_owned());
    let done = bench.redrive(&filter, 100).await;
    assert_eq!((done.done, done.left, done.total), (1, 9, 10));
    assert_eq!(ids(&bench.plain.drain(&bench.queue()).await), ["4".to_owned()].into());
    assert_eq!(bench.list(&Filter::default()).await.len(), 9);
}

#[tokio::test]
async fn a_redrive_may_go_to_another_queue() {
    let bench = Bench::with(2).await;
    let mut options = RedriveOptions::default();
    options.to = Some("second-try".to_owned());
    let (pile, filter) = (notes(), Filter::default());
    let redrive = bench.letters.redrive(&pile, &filter, 10, &options, &bench.producer, |_| {});
    assert_eq!(redrive.await.unwrap().done, 2);
    let other = bench.broker.config().topology().queue("second-try");
    let moved = bench.plain.drain(&other).await;
    assert_eq!(ids(&moved), all(2));
    assert_eq!(read(&moved[0]).queue, "second-try");
}

#[tokio::test]
async fn progress_is_told_letter_by_letter() {
    let bench = Bench::with(5).await;
    let mut told = Vec::new();
    let (pile, filter, options) = (notes(), Filter::default(), RedriveOptions::default());
    let letters = &bench.letters;
    let progress = |done: &Done| told.push((done.done, done.total));
    letters.redrive(&pile, &filter, 10, &options, &bench.producer, progress).await.unwrap();
    assert_eq!(told, [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]);
}

#[tokio::test]
async fn what_cannot_be_published_stays_and_is_named() {
    let bench = Bench::with(3).await;
    let config = bench.broker.config().payload_limit(1);
    let small = Producer::new(&config);
    let (pile, filter, options) = (notes(), Filter::default(), RedriveOptions::default());
    let done = bench.letters.redrive(&pile, &filter, 10, &options, &small, |_| {}).await.unwrap();
    assert_eq!((done.done, done.failed.len()), (0, 3));
    assert!(done.failed[0].1.contains("too large"), "{:?}", done.failed);
    assert_eq!(bench.list(&Filter::default()).await.len(), 3);
}

#[tokio::test]
async fn a_redrive_that_is_dropped_half_way_loses_nothing() {
    let bench = Bench::with(200).await;
    let half = Notify::new();
    let progress = |done: &Done| {
        if done.done == 50 {
            half.notify_one();
        }
    };
    let (pile, filter, options) = (notes(), Filter::default(), RedriveOptions::default());
    tokio::select! {
        _ = bench.letters.redrive(&pile, &filter, 1_000, &options, &bench.producer, progress) => {}
        () = half.notified() => {}
    }
    // The rest comes back by itself, while the connection stays open.
    let mut left = Vec::new();
    eventually("what was taken and not done is back", async || {
        left = bench.list(&Filter::default()).await;
        left.len() >= 149
    })
    .await;
    assert!(left.len() <= 150, "{}", left.len());
    assert_eq!(bench.everywhere().await, all(200));
}

#[tokio::test]
async fn a_redrive_that_loses_its_connection_loses_nothing_and_can_be_done_again() {
    let bench = Bench::with(200).await;
    let proxy = Proxy::to(&bench.broker.address()).await;
    let letters = DeadLetters::new(&through(&proxy.url(), &bench.broker.config()));
    let progress = |done: &Done| {
        if done.done == 50 {
            proxy.cut();
        }
    };
    let (pile, filter, options) = (notes(), Filter::default(), RedriveOptions::default());
    let redrive = letters.redrive(&pile, &filter, 1_000, &options, &bench.producer, progress);
    let error = within("an error", redrive).await.unwrap_err();
    assert!(error.to_string().contains("still in the queue"), "{error}");
    eventually("the rest is back", async || {
        let options = RedriveOptions::default();
        let again = letters.redrive(&pile, &filter, 1_000, &options, &bench.producer, |_| {}).await;
        again.is_ok_and(|done| done.total == 0)
    })
    .await;
    assert_eq!(bench.everywhere().await, all(200));
}

#[tokio::test]
async fn a_purge_removes_only_what_the_filter_means() {
    let bench = Bench::with(3).await;
    bench.bury(letter(7, "note.drop", Reason::Rejected)).await;
    let mut filter = Filter::default();
    filter.kind = Some("note.take".to_owned());
    let done = bench.letters.purge(&notes(), &filter, 100).await.unwrap();
    assert_eq!((done.done, done.left, done.total), (3, 1, 4));
    assert_eq!(bench.list(&Filter::default()).await, ["7"]);
}

#[tokio::test]
async fn a_rate_that_makes_no_sense_is_no_fault() {
    let bench = Bench::with(1).await;
    for rate in [f64::INFINITY, f64::MAX, 1e12] {
        let mut options = RedriveOptions::default();
        options.rate = Some(rate);
        let (pile, filter) = (notes(), Filter::default());
        let redrive = bench.letters.redrive(&pile, &filter, 10, &options, &bench.producer, |_| {});
        redrive.await.unwrap();
    }
    let mut options = RedriveOptions::default();
    options.rate = Some(0.0);
    bench.bury(letter(1, "note.take", Reason::Failed)).await;
    let (pile, filter) = (notes(), Filter::default());
    // The first goes at once, the second in a long time.
    let redrive = bench.letters.redrive(&pile, &filter, 10, &options, &bench.producer, |_| {});
    within("a redrive", redrive).await.unwrap();
}
