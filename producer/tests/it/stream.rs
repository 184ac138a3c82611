//! The stream of events is read in order, through whatever happens to the way there, and never with
//! a gap that nobody is told of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use forebay_producer::testing::{Broker, Meddle, Proxy, broker};
use forebay_producer::wire::event::event_data;
use forebay_producer::{
    Config, Declare, Envelope, Event, EventKind, EventLog, Events, Gap, Read, Start, Stored,
    StreamError, Token,
};
use lapin::BasicProperties;
use serde_json::json;

use crate::support::{Plain, kill_and_revive, own_broker, through, within};

struct Bench {
    broker: Broker,
    log: EventLog,
    plain: Plain,
}

impl Bench {
    async fn on(broker: Broker) -> Self {
        let log = EventLog::new(&broker.config());
        log.declare().await.unwrap();
        Self { plain: Plain::at(broker.url()).await, log, broker }
    }

    async fn new() -> Self {
        Self::on(broker().await).await
    }

    /// With these events on the stream.
    async fn with(numbers: std::ops::Range<u64>) -> Self {
        let bench = Self::new().await;
        bench.tell(numbers).await;
        bench
    }

    async fn tell(&self, numbers: std::ops::Range<u64>) {
        for n in numbers {
            self.put(&event(n)).await;
        }
    }

    async fn put(&self, event: &Event) {
        let exchange = self.stream();
        let body = event.encode();
        self.plain.publish(&exchange, &event.routing_key(), &body, event.properties()).await;
    }

    fn stream(&self) -> String {
        self.broker.config().topology().events()
    }

    async fn read(&self, start: Start) -> Events {
        self.log.read(start).await.unwrap()
    }

    /// The token of each event that is there.
    async fn tokens(&self, count: usize) -> Vec<Token> {
        let mut events = self.read(Start::First).await;
        stored(&mut events, count).await.iter().map(Stored::token).collect()
    }
}

fn event(n: u64) -> Event {
    let mut job = Envelope::new("note.take", "notes", "{}");
    job.id = n.to_string();
    Event::of_job(EventKind::Progress, &job, event_data(&json!({ "n": n })).unwrap())
}

async fn next(events: &mut Events) -> Read {
    within("something on the stream", events.next()).await.unwrap()
}

async fn stored(events: &mut Events, count: usize) -> Vec<Stored> {
    let mut all = Vec::new();
    while all.len() < count {
        match next(events).await {
            Read::Event(stored) => all.push(stored),
            other => panic!("{other:?} after {} events", all.len()),
        }
    }
    all
}

/// The numbers of the next events.
async fn numbers(events: &mut Events, count: usize) -> Vec<u64> {
    let stored = stored(events, count).await;
    stored.iter().map(|stored| stored.event.subject.parse().unwrap()).collect()
}

fn all(numbers: std::ops::Range<u64>) -> Vec<u64> {
    numbers.collect()
}

#[tokio::test]
async fn a_reader_begins_with_the_oldest_and_goes_on_with_the_newest() {
    let bench = Bench::with(0..500).await;
    let mut events = bench.read(Start::First).await;
    assert_eq!(numbers(&mut events, 500).await, all(0..500));
    bench.tell(500..510).await;
    let newest = stored(&mut events, 10).await;
    assert_eq!(newest[0].event.subject, "500");
    assert!(newest.is_sorted_by_key(|stored| stored.offset));
    let again = Event::decode(&newest[0].bytes).unwrap();
    assert_eq!(again.id, newest[0].event.id, "bytes are handed on as they came");
}

#[tokio::test]
async fn a_reader_can_begin_now() {
    let bench = Bench::with(0..10).await;
    let mut events = bench.read(Start::Next).await;
    bench.tell(10..12).await;
    assert_eq!(numbers(&mut events, 2).await, [10, 11]);
}

#[tokio::test]
async fn a_reader_can_begin_at_an_offset_or_at_a_time() {
    let bench = Bench::with(0..300).await;
    let tokens = bench.tokens(300).await;
    assert_eq!(tokens[0].offset, 0, "the first event of a stream");
    let mut events = bench.read(Start::At(tokens[123].offset)).await;
    assert_eq!(numbers(&mut events, 177).await, all(123..300));
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let mut events = bench.read(Start::Since(long_ago)).await;
    assert_eq!(numbers(&mut events, 300).await, all(0..300));
}

#[tokio::test]
async fn after_a_token_comes_what_follows_it_and_nothing_else() {
    let bench = Bench::with(0..50).await;
    let tokens = bench.tokens(50).await;
    for (at, token) in [(0, &tokens[0]), (17, &tokens[17]), (49, &tokens[49])] {
        let mut events = bench.read(Start::After(token.clone())).await;
        assert!(matches!(next(&mut events).await, Read::Resumed));
        assert_eq!(numbers(&mut events, 49 - at).await, all(at as u64 + 1..50));
    }
    let mut events = bench.read(Start::After(Token::BEGINNING)).await;
    assert!(matches!(next(&mut events).await, Read::Resumed));
    assert_eq!(numbers(&mut events, 50).await, all(0..50));
}

#[tokio::test]
async fn the_beginning_of_an_empty_stream_is_a_place_too() {
    let bench = Bench::new().await;
    let mut events = bench.read(Start::After(Token::BEGINNING)).await;
    assert!(matches!(next(&mut events).await, Read::Resumed));
    bench.tell(0..1).await;
    assert_eq!(numbers(&mut events, 1).await, [0]);
}

#[tokio::test]
async fn a_token_of_another_stream_is_told_and_everything_is_given() {
    let bench = Bench::with(0..5).await;
    let unknown = "0199e0a8-7c00-7000-8000-000000000001";
    for offset in [0, 3, 4_000_000_000] {
        let mut events = bench.read(Start::After(Token::new(offset, unknown))).await;
        assert!(matches!(next(&mut events).await, Read::Gap(Gap::Recreated)), "{offset}");
        assert_eq!(numbers(&mut events, 5).await, all(0..5));
    }
}

#[tokio::test]
async fn what_is_no_event_is_passed_over() {
    let bench = Bench::with(0..1).await;
    let exchange = bench.stream();
    for body in [&b""[..], b"\xff", b"[]", b"{}", br#"{"specversion":"1.0","id":"\n"}"#] {
        bench.plain.publish(&exchange, "job.x", body, BasicProperties::default()).await;
    }
    let deep = "[".repeat(200_000);
    bench.plain.publish(&exchange, "", deep.as_bytes(), BasicProperties::default()).await;
    bench.tell(1..2).await;
    let mut events = bench.read(Start::First).await;
    assert_eq!(numbers(&mut events, 2).await, [0, 1]);
}

#[tokio::test]
async fn a_connection_that_is_cut_again_and_again_costs_no_event() {
    let bench = Bench::new().await;
    let proxy = Proxy::to(&bench.broker.address()).await;
    let behind = through(&proxy.url(), &bench.broker.config());
    let mut events = Events::open(&behind, Start::Next).await.unwrap();
    // Before the first event, too.
    proxy.cut();
    for round in 0..6 {
        bench.tell(round * 50..round * 50 + 25).await;
        proxy.cut();
        bench.tell(round * 50 + 25..round * 50 + 50).await;
        assert_eq!(numbers(&mut events, 50).await, all(round * 50..round * 50 + 50));
    }
}

#[tokio::test]
async fn a_broker_that_shows_nothing_for_long_is_waited_for() {
    let bench = Bench::with(0..20).await;
    let proxy = Proxy::to(&bench.broker.address()).await;
    let behind = through(&proxy.url(), &bench.broker.config());
    let mut events = Events::open(&behind, Start::First).await.unwrap();
    assert_eq!(numbers(&mut events, 20).await, all(0..20));
    let slow = Arc::new(AtomicBool::new(true));
    let is_slow = Arc::clone(&slow);
    proxy.meddle(move |frame| {
        let shown = !frame.is_delivery() || !is_slow.load(Ordering::Acquire);
        if shown { Meddle::Pass } else { Meddle::Drop }
    });
    proxy.cut();
    let silence = tokio::time::timeout(Duration::from_secs(15), events.next()).await;
    assert!(silence.is_err(), "no word of another stream, which would be wrong: {silence:?}");
    bench.tell(20..25).await;
    slow.store(false, Ordering::Release);
    // What was dropped does not come again on this connection.
    proxy.cut();
    assert_eq!(numbers(&mut events, 5).await, all(20..25));
}

/// The next one to consume is sent nothing; whoever looks beside it is.
fn hang_the_next_consumer(proxy: &Proxy) {
    const NONE: u32 = u32::MAX;
    const NEXT: u32 = u32::MAX - 1;
    let hangs = AtomicU32::new(NEXT);
    proxy.meddle(move |frame| {
        let channel = u32::from(frame.channel());
        let (seen, then) = match hangs.load(Ordering::Acquire) {
            NEXT if frame.is_consume() => (NEXT, channel),
            hanging if hanging == channel && frame.is_channel_close() => (channel, NONE),
            other => (other, other),
        };
        _ = hangs.compare_exchange(seen, then, Ordering::AcqRel, Ordering::Acquire);
        if seen == channel && frame.is_delivery() { Meddle::Drop } else { Meddle::Pass }
    });
}

#[tokio::test]
async fn a_consumer_that_hangs_is_found_out_and_replaced() {
    let bench = Bench::with(0..20).await;
    let proxy = Proxy::to(&bench.broker.address()).await;
    let behind = through(&proxy.url(), &bench.broker.config());
    let mut events = Events::open(&behind, Start::First).await.unwrap();
    assert_eq!(numbers(&mut events, 20).await, all(0..20));
    hang_the_next_consumer(&proxy);
    proxy.cut();
    bench.tell(20..25).await;
    assert_eq!(numbers(&mut events, 5).await, all(20..25));
}

#[tokio::test]
async fn who_asks_for_the_newest_and_is_sent_nothing_gets_it_nevertheless() {
    let bench = Bench::with(0..1).await;
    let proxy = Proxy::to(&bench.broker.address()).await;
    hang_the_next_consumer(&proxy);
    let behind = through(&proxy.url(), &bench.broker.config());
    let mut events = Events::open(&behind, Start::Last).await.unwrap();
    assert_eq!(numbers(&mut events, 1).await, all(0..1));
}

#[tokio::test]
async fn a_stream_made_anew_that_is_shorter_is_told() {
    let bench = Bench::with(0..20).await;
    let token = bench.tokens(20).await.pop().unwrap();
    bench.plain.delete(&bench.stream()).await;
    EventLog::new(&bench.broker.config()).declare().await.unwrap();
    bench.tell(20..23).await;
    let mut events = bench.read(Start::After(token)).await;
    assert!(matches!(next(&mut events).await, Read::Gap(Gap::Recreated)));
    assert_eq!(numbers(&mut events, 3).await, all(20..23));
}

#[tokio::test]
async fn a_reader_knows_what_came_and_whether_the_stream_was_there() {
    let broker = broker().await;
    let log = EventLog::new(&broker.config());
    let events = within("a stream", log.read(Start::First)).await.unwrap();
    assert!(events.was_missing());
    assert_eq!(events.came(), None);
    let bench = Bench::on(broker).await;
    bench.tell(0..3).await;
    let mut events = bench.read(Start::First).await;
    assert!(!events.was_missing());
    let newest = stored(&mut events, 3).await.pop().unwrap();
    assert_eq!(events.came(), Some(newest.offset));
}

#[tokio::test]
async fn a_path_that_breaks_as_it_attaches_is_not_taken_for_another_stream() {
    const START: (u16, u16) = (10, 10);
    const CONSUME_OK: (u16, u16) = (60, 21);
    let bench = Bench::with(0..5).await;
    let proxy = Proxy::to(&bench.broker.address()).await;
    let url = format!("{}?heartbeat=4", proxy.url());
    let behind = through(&url, &bench.broker.config());
    let mut events = Events::open(&behind, Start::First).await.unwrap();
    assert_eq!(numbers(&mut events, 5).await, all(0..5));
    // On its next connection it hears that it is attached, and then nothing any more.
    let (connections, silent) = (AtomicU32::new(0), AtomicBool::new(false));
    proxy.meddle(move |frame| {
        if frame.method() == Some(START) {
            connections.fetch_add(1, Ordering::AcqRel);
            silent.store(false, Ordering::Release);
        }
        let is_silent = silent.load(Ordering::Acquire);
        if frame.method() == Some(CONSUME_OK) && connections.load(Ordering::Acquire) == 1 {
            silent.store(true, Ordering::Release);
        }
        if is_silent { Meddle::Drop } else { Meddle::Pass }
    });
    proxy.cut();
    bench.tell(5..10).await;
    assert_eq!(numbers(&mut events, 5).await, all(5..10));
}

#[tokio::test]
async fn a_stream_that_is_made_anew_is_told_and_read_from_its_beginning() {
    let bench = Bench::with(0..20).await;
    let mut events = bench.read(Start::First).await;
    assert_eq!(numbers(&mut events, 20).await, all(0..20));
    bench.plain.delete(&bench.stream()).await;
    let gap = within("word of it", events.next()).await.unwrap();
    assert!(matches!(gap, Read::Gap(Gap::Recreated)), "{gap:?}");
    bench.tell(20..23).await;
    assert_eq!(numbers(&mut events, 3).await, all(20..23));
}

#[tokio::test]
async fn a_broker_that_restarts_costs_no_event() {
    let (own, _place) = own_broker("").await;
    let bench = Bench::on(own.broker()).await;
    bench.tell(0..100).await;
    let mut events = bench.read(Start::First).await;
    assert_eq!(numbers(&mut events, 60).await, all(0..60));
    kill_and_revive(&own).await;
    let bench = Bench::on(bench.broker).await;
    bench.tell(100..150).await;
    assert_eq!(numbers(&mut events, 90).await, all(60..150));
}

#[tokio::test]
async fn a_reader_that_is_not_waited_for_loses_nothing() {
    let bench = Bench::with(0..400).await;
    let mut events = bench.read(Start::First).await;
    let mut seen = Vec::new();
    while seen.len() < 400 {
        let brief = Duration::from_micros(fastrand::u64(..200));
        if let Ok(read) = tokio::time::timeout(brief, events.next()).await {
            let Read::Event(stored) = read.unwrap() else { panic!("no event") };
            seen.push(stored.event.subject.parse::<u64>().unwrap());
        }
    }
    assert_eq!(seen, all(0..400));
}

#[tokio::test]
async fn with_declare_never_a_missing_stream_is_an_error_with_the_remedy() {
    let broker = broker().await;
    let config: Config = broker.config().declare(Declare::Never);
    let error = within("an answer", Events::open(&config, Start::First)).await.unwrap_err();
    assert!(matches!(error, StreamError::Topology(_)), "{error}");
    assert!(error.to_string().contains("forebay topology apply"), "{error}");
}

#[tokio::test]
async fn a_log_that_was_closed_ends_its_readers() {
    let bench = Bench::with(0..1).await;
    let mut events = bench.read(Start::First).await;
    assert_eq!(numbers(&mut events, 1).await, [0]);
    bench.log.close().await;
    let error = within("the end", events.next()).await.unwrap_err();
    assert!(matches!(error, StreamError::Connect(_)), "{error}");
}
