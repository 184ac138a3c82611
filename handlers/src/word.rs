//! What a program or an endpoint says of a job besides its result: progress, and what channels are
//! to be told.
//! In: its words, as they come. Out: they are told in their order, before its result counts.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use forebay_producer::wire::event::EVENT_LIMIT;
use forebay_worker::{BatchContext, Context, EmitError};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::wish::beginning;

/// As many may wait to be told; a program that says more at once is not held up for them.
const WAITING: usize = 1_000;
/// As many bytes of these wait in all runs together.
const ROOM: usize = 8 * 1024 * 1024;
static LEFT: Semaphore = Semaphore::const_new(ROOM);
/// As many are under way at once.
const UNDER_WAY: usize = 64;
/// Longer than that after its end nobody waits for what it said. What is under way then is told
/// nevertheless if it can be; the rest is lost, and counted.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a function says while it works.
#[derive(Debug)]
pub(crate) enum Word {
    /// How far it is.
    Progress(Value),
    /// A channel is to be told something.
    Emit(Emission),
    /// A channel was to be told what cannot be read.
    Garbled(serde_json::Error),
    /// As many more were said at once as nobody has kept.
    Beyond(u64),
}

/// What a channel is to be told.
#[derive(Debug, Deserialize)]
pub(crate) struct Emission {
    channel: String,
    event: String,
    #[serde(default = "nothing")]
    data: Box<RawValue>,
}

impl Emission {
    /// Bytes that it takes while it waits, about. `None`: it is larger than an event may be.
    fn weight(&self) -> Option<u32> {
        let bytes = self.channel.len() + self.event.len() + self.data.get().len();
        u32::try_from(bytes).ok().filter(|_| bytes <= EVENT_LIMIT)
    }
}

/// What was said and is not told yet.
struct Heard {
    emission: Emission,
    room: SemaphorePermit<'static>,
}

fn nothing() -> Box<RawValue> {
    RawValue::NULL.to_owned()
}

/// Who hears a word.
pub(crate) type Hears = Arc<dyn Fn(Word) + Send + Sync>;

/// Somebody in whose name channels are told something.
pub(crate) trait Tells: Clone + Send + Sync + 'static {
    fn emit(&self, emission: Emission) -> BoxFuture<'static, Result<(), EmitError>>;
}

impl<S: Send + Sync + 'static> Tells for Context<S> {
    fn emit(&self, Emission { channel, event, data }: Emission) -> BoxFuture<'static, Said> {
        let cx = self.clone();
        async move { cx.emit(&channel, &event, &data).await }.boxed()
    }
}

impl<S: Send + Sync + 'static> Tells for BatchContext<S> {
    fn emit(&self, Emission { channel, event, data }: Emission) -> BoxFuture<'static, Said> {
        let cx = self.clone();
        async move { cx.emit(&channel, &event, &data).await }.boxed()
    }
}

type Said = Result<(), EmitError>;

/// Reads what a channel is to be told.
pub(crate) fn emission(from: &RawValue) -> Word {
    serde_json::from_str(from.get()).map_or_else(Word::Garbled, Word::Emit)
}

/// A list of what channels are to be told. No more of it is kept than may wait: each entry takes
/// memory, and there is room for millions in one answer.
#[derive(Debug, Default)]
pub(crate) struct Entries<'a> {
    first: Vec<&'a RawValue>,
    more: u64,
}

impl Entries<'_> {
    pub(crate) fn words(&self) -> impl Iterator<Item = Word> {
        let beyond = (self.more > 0).then_some(Word::Beyond(self.more));
        self.first.iter().map(|entry| emission(entry)).chain(beyond)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(Self::default())
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Entries<'a> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self, A::Error> {
        while self.first.len() < WAITING {
            let Some(entry) = list.next_element()? else { return Ok(self) };
            self.first.push(entry);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            self.more += 1;
        }
        Ok(self)
    }
}

/// What became of what a function said in one run: what makes no difference to the job is logged
/// once, however much of it there is.
#[derive(Debug, Default)]
struct Account {
    /// Of a size that an event may have.
    said: AtomicU64,
    /// Of these, handed over to be told.
    begun: AtomicU64,
    /// Of these, told, or known to have failed.
    ended: AtomicU64,
    large: AtomicU64,
    garbled: AtomicU64,
    /// What is wrong with the first that cannot be read.
    why: OnceLock<String>,
}

impl Account {
    /// `None`: it cannot be told, which is counted.
    fn enter(&self, emission: Emission) -> Option<Heard> {
        let Some(weight) = emission.weight() else {
            count(&self.large, 1);
            return None;
        };
        count(&self.said, 1);
        let room = LEFT.try_acquire_many(weight).ok()?;
        Some(Heard { emission, room })
    }

    fn garbled(&self, error: &serde_json::Error) {
        count(&self.garbled, 1);
        // It may repeat all that was said.
        self.why.get_or_init(|| beginning(error.to_string().as_bytes()));
    }

    fn lost(&self) -> u64 {
        of(&self.said) - of(&self.begun)
    }

    fn unconfirmed(&self) -> u64 {
        of(&self.begun) - of(&self.ended)
    }

    fn log(&self) {
        let (lost, unconfirmed) = (self.lost(), self.unconfirmed());
        if lost > 0 {
            warn!(lost, "a function said more than could be told, at once or in time");
        }
        if unconfirmed > 0 {
            warn!(unconfirmed, "what a function said was not confirmed when its run ended");
        }
        let (large, garbled) = (of(&self.large), of(&self.garbled));
        if large > 0 {
            warn!(large, limit = EVENT_LIMIT, "what a function said is larger than an event");
        }
        if garbled > 0 {
            let error = self.why.get().map_or("", String::as_str);
            warn!(garbled, error, "what a function said cannot be read as an `emit`");
        }
    }
}

fn count(what: &AtomicU64, more: u64) {
    what.fetch_add(more, Ordering::Relaxed);
}

fn of(what: &AtomicU64) -> u64 {
    what.load(Ordering::Relaxed)
}

/// Logs the account when the run is over, or is dropped at its deadline.
struct Closing(Arc<Account>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.log();
    }
}

/// Lets a function run and tells channels what it says, in the order in which it says it. Returns
/// when it has ended and all is told, or 5 s later.
pub(crate) async fn heard<T, R: Future<Output = T>>(
    cx: &impl Tells,
    on_progress: impl Fn(Value) + Send + Sync + 'static,
    run: impl FnOnce(Hears) -> R,
) -> T {
    let closing = Closing(Arc::default());
    listen(&closing.0, cx, on_progress, run).await
}

async fn listen<T, R: Future<Output = T>>(
    account: &Arc<Account>,
    cx: &impl Tells,
    on_progress: impl Fn(Value) + Send + Sync + 'static,
    run: impl FnOnce(Hears) -> R,
) -> T {
    let (desk, mut waiting) = mpsc::channel(WAITING);
    let book = Arc::clone(account);
    let hears = Arc::new(move |word| match word {
        Word::Progress(progress) => on_progress(progress),
        Word::Emit(emission) => {
            if let Some(heard) = book.enter(emission) {
                // Without a place it is never begun, and so counted as lost.
                desk.try_send(heard).ok();
            }
        }
        Word::Garbled(error) => book.garbled(&error),
        Word::Beyond(more) => count(&book.said, more),
    });
    let telling = stream::poll_fn(move |task| waiting.poll_recv(task));
    // Kept in order; each is handed over when it is first looked at.
    let telling = telling.map(|Heard { emission, room }| {
        let told = cx.emit(emission);
        async move {
            count(&account.begun, 1);
            let told = told.await;
            count(&account.ended, 1);
            drop(room);
            told
        }
    });
    let telling = telling.buffered(UNDER_WAY);
    let mut failed = 0_u64;
    let telling = telling.for_each(|told| {
        if let Err(error) = told {
            failed += 1;
            if failed == 1 {
                warn!(%error, "a channel was not told what the function said");
            } else {
                debug!(%error, failed, "a channel was not told what the function said");
            }
        }
        std::future::ready(())
    });
    let mut telling = std::pin::pin!(telling);
    let mut run = std::pin::pin!(run(hears));
    tokio::select! {
        biased;
        // Both go on where they were.
        result = &mut run => {
            timeout(PATIENCE, telling).await.ok();
            result
        }
        // It ends with the last who may say something, and is not to be asked again.
        () = &mut telling => run.await,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Mutex;

    use tokio::sync::oneshot;

    use super::*;

    /// Never gets done with telling.
    #[derive(Clone)]
    struct Mute;

    impl Tells for Mute {
        fn emit(&self, _: Emission) -> BoxFuture<'static, Said> {
            pending().boxed()
        }
    }

    /// Is done with telling at once.
    #[derive(Clone, Default)]
    struct Crier(Arc<Mutex<Vec<String>>>);

    impl Tells for Crier {
        fn emit(&self, emission: Emission) -> BoxFuture<'static, Said> {
            self.0.lock().unwrap().push(emission.data.get().to_owned());
            ready(Ok(())).boxed()
        }
    }

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    fn saying(data: &RawValue) -> Word {
        let (channel, event) = ("c".to_owned(), "e".to_owned());
        Word::Emit(Emission { channel, event, data: data.to_owned() })
    }

    #[tokio::test]
    async fn what_all_runs_say_waits_in_a_bounded_room_which_is_free_again_after_them() {
        let data = |bytes| serde_json::value::to_raw_value(&"x".repeat(bytes)).unwrap();
        let (half, too_much) = (data(EVENT_LIMIT / 2), data(EVENT_LIMIT));
        let say = || {
            heard(
                &Mute,
                |_| {},
                |hears| async {
                    for _ in 0..500 {
                        hears(saying(&half));
                        hears(saying(&too_much));
                    }
                    drop(hears);
                    LEFT.available_permits()
                },
            )
        };
        let (first, second) = tokio::join!(say(), say());
        assert!(first < EVENT_LIMIT && second < EVENT_LIMIT, "{first} and {second} are left");
        // Other tests may use some.
        assert!(LEFT.available_permits() > ROOM / 2, "{} are left", LEFT.available_permits());
    }

    /// After a run that says all these and ends.
    async fn account_of(cx: &impl Tells, words: Vec<Word>) -> Arc<Account> {
        let account = Arc::default();
        let say = |hears: Hears| async move { words.into_iter().for_each(|word| hears(word)) };
        listen(&account, cx, |_| {}, say).await;
        account
    }

    fn numbers(many: usize) -> Vec<Word> {
        (0..many).map(|number| saying(&raw(&number.to_string()))).collect()
    }

    #[tokio::test]
    async fn what_is_told_is_told_in_order_and_missing_nowhere() {
        let crier = Crier::default();
        let account = account_of(&crier, numbers(200)).await;
        let expected: Vec<_> = (0..200).map(|number| number.to_string()).collect();
        assert_eq!(*crier.0.lock().unwrap(), expected);
        assert_eq!((of(&account.said), account.lost(), account.unconfirmed()), (200, 0, 0));
        assert_eq!((of(&account.large), of(&account.garbled)), (0, 0));
    }

    #[tokio::test]
    async fn what_is_not_told_some_time_after_the_end_is_counted() {
        let account = account_of(&Mute, numbers(200)).await;
        assert_eq!((account.lost(), account.unconfirmed()), (136, 64));
    }

    #[tokio::test]
    async fn what_is_not_told_when_a_run_is_dropped_is_counted() {
        let account = Arc::default();
        let say = |hears: Hears| async move {
            numbers(WAITING + 7).into_iter().for_each(|word| hears(word));
            hears(Word::Beyond(1_000_000));
            pending::<()>().await;
        };
        assert!(listen(&account, &Mute, |_| {}, say).now_or_never().is_none());
        assert_eq!((account.lost(), account.unconfirmed()), (1_000_943, 64));
    }

    #[tokio::test]
    async fn what_cannot_be_told_is_counted_and_the_first_reason_kept_short() {
        let crier = Crier::default();
        let bad = [
            r#"{"channel": "orders"}"#.to_owned(),
            "0".to_owned(),
            format!("\"{}\"", "x".repeat(1_000_000)),
        ];
        let huge = serde_json::to_string(&"x".repeat(EVENT_LIMIT)).unwrap();
        let mut words: Vec<_> = bad.iter().map(|bad| emission(&raw(bad))).collect();
        words.push(saying(&raw(&huge)));
        words.push(emission(&raw(r#"{"channel": "orders", "event": "paid"}"#)));
        words.push(Word::Beyond(3));
        let account = account_of(&crier, words).await;
        assert_eq!(*crier.0.lock().unwrap(), ["null"]);
        assert_eq!((of(&account.garbled), of(&account.large), account.lost()), (3, 1, 3));
        let why = account.why.get().unwrap();
        assert!(why.contains("missing field `event`"), "{why}");
        let long = account_of(&crier, vec![emission(&raw(&bad[2]))]).await;
        assert!(long.why.get().unwrap().len() < 200);
    }

    #[tokio::test]
    async fn nobody_is_waited_for_when_the_last_speaker_has_gone_before_the_end() {
        let (end, ended) = oneshot::channel();
        let run = |hears: Hears| async move {
            drop(hears);
            ended.await.unwrap()
        };
        let crier = Crier::default();
        let mut heard = std::pin::pin!(heard(&crier, |_| {}, run));
        assert_eq!(heard.as_mut().now_or_never(), None);
        end.send("done").unwrap();
        assert_eq!(heard.as_mut().now_or_never(), Some("done"));
    }

    #[test]
    fn of_a_list_no_more_is_kept_than_may_wait() {
        for (many, kept, more) in
            [(0, 0, 0), (3, 3, 0), (WAITING, WAITING, 0), (5_000, 1_000, 4_000)]
        {
            let list = serde_json::to_string(&vec![0; many]).unwrap();
            let entries: Entries<'_> = serde_json::from_str(&list).unwrap();
            assert_eq!((entries.first.len(), entries.more), (kept, more), "{many}");
            let last = entries.words().last();
            assert_eq!(matches!(last, Some(Word::Beyond(4_000))), more > 0, "{last:?}");
            assert_eq!(entries.words().count(), kept + usize::from(more > 0));
        }
        for other in ["null", "7", "{}", "\"x\"", "[0, ", "[0] 1"] {
            assert!(serde_json::from_str::<Entries<'_>>(other).is_err(), "{other}");
        }
        let broken = format!("[{}x]", "0,".repeat(WAITING + 1));
        assert!(serde_json::from_str::<Entries<'_>>(&broken).is_err());
    }
}
