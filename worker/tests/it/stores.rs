//! What every store of claims does, checked on all of them: memory, Redis, PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_worker::idempotency::{
    Claim, Key, MemoryStore, PostgresStore, RedisStore, Store, StoreError,
};
use forebay_worker::testing::{
    Postgres, Redis, postgres, postgres_of_its_own, redis, redis_of_its_own,
};
use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time;

use crate::support::eventually;

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(300);
/// Over before the next call, after a nap.
const LAPSING: Duration = Duration::from_millis(1);
const NAP: Duration = Duration::from_millis(10);

fn key(text: &str) -> Key {
    Key::new(format!("test work.do key {text}"))
}

fn json(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn granted(store: &impl Store, key: &Key, lease: Duration) -> u64 {
    match store.claim(key, lease).await.unwrap() {
        Claim::Granted { number } => number,
        other => panic!("{other:?}"),
    }
}

/// Waits until a lease has passed, and takes over.
async fn taken_over(store: &impl Store, key: &Key) -> u64 {
    let mut number = None;
    eventually("the lease has passed", async || {
        if let Ok(Claim::Granted { number: new }) = store.claim(key, LONG).await {
            number = Some(new);
        }
        number.is_some()
    })
    .await;
    number.unwrap()
}

/// One behaviour each, on a store that nobody else uses, in several handles as of processes.
mod behaviour {
    use super::*;

    pub(super) async fn among_fifty_claims_at_once_one_is_granted<S: Store + Clone>(stores: &[S]) {
        for round in 0..10 {
            let key = key(&format!("many-{round}"));
            let mut claims = JoinSet::new();
            for n in 0..50 {
                let (store, key) = (stores[n % stores.len()].clone(), key.clone());
                claims.spawn(async move { store.claim(&key, LONG).await.unwrap() });
            }
            let claims = claims.join_all().await;
            let granted = |claim: &&Claim| matches!(claim, Claim::Granted { .. });
            let held = |claim: &&Claim| matches!(claim, Claim::Held { .. });
            assert_eq!(claims.iter().filter(granted).count(), 1, "{claims:?}");
            assert_eq!(claims.iter().filter(held).count(), 49, "{claims:?}");
        }
    }

    pub(super) async fn a_held_claim_tells_the_rest_of_its_lease<S: Store + Clone>(stores: &[S]) {
        let (store, key) = (&stores[0], key("rest"));
        granted(store, &key, LONG).await;
        let Claim::Held { expires_in } = store.claim(&key, SHORT).await.unwrap() else { panic!() };
        assert!(expires_in <= LONG && expires_in > LONG / 2, "{expires_in:?}");
    }

    pub(super) async fn when_the_lease_has_passed_another_takes_over_and_the_first_is_fenced_off<
        S: Store + Clone,
    >(
        stores: &[S],
    ) {
        let (store, key) = (&stores[0], key("fence"));
        let first = granted(store, &key, SHORT).await;
        let second = taken_over(&stores[1], &key).await;
        assert!(second > first, "{second} after {first}");
        assert!(!store.renew(&key, first, LONG).await.unwrap());
        assert!(!store.release(&key, first).await.unwrap());
        assert!(!store.complete(&key, first, Some(&json("1")), LONG).await.unwrap());
        assert!(store.complete(&key, second, Some(&json("2")), LONG).await.unwrap());
        assert!(!store.complete(&key, first, Some(&json("1")), LONG).await.unwrap());
        let done = Claim::Completed { result: Some(json("2")) };
        assert_eq!(store.claim(&key, LONG).await.unwrap(), done);
    }

    pub(super) async fn a_late_completion_counts_when_nobody_has_taken_over<S: Store + Clone>(
        stores: &[S],
    ) {
        let (store, key) = (&stores[0], key("late"));
        let number = granted(store, &key, LAPSING).await;
        time::sleep(NAP).await;
        assert!(store.complete(&key, number, Some(&json("1")), LONG).await.unwrap());
        assert!(matches!(store.claim(&key, LONG).await, Ok(Claim::Completed { .. })));
    }

    pub(super) async fn a_renewed_claim_lasts<S: Store + Clone>(stores: &[S]) {
        let (store, key) = (&stores[0], key("renew"));
        let number = granted(store, &key, SHORT).await;
        assert!(store.renew(&key, number, LONG).await.unwrap());
        time::sleep(2 * SHORT).await;
        assert!(matches!(stores[1].claim(&key, LONG).await, Ok(Claim::Held { .. })));
    }

    pub(super) async fn a_released_claim_is_free_at_once_and_numbers_go_on<S: Store + Clone>(
        stores: &[S],
    ) {
        let (store, key) = (&stores[0], key("release"));
        let mut last = 0;
        for _ in 0..20 {
            let number = granted(store, &key, LONG).await;
            assert!(number > last, "{number} after {last}");
            assert!(store.release(&key, number).await.unwrap());
            last = number;
        }
        let next = granted(&stores[1], &key, LONG).await;
        assert!(!store.release(&key, last).await.unwrap());
        assert!(stores[1].renew(&key, next, LONG).await.unwrap());
    }

    pub(super) async fn a_result_is_returned_as_it_was_stored<S: Store + Clone>(stores: &[S]) {
        let large = Bytes::from(format!("\"{}\"", "x".repeat(1 << 20)));
        let odd = Bytes::from_static(b"{\"a\":\"\\u0000 \xc3\xa4\"}\x00\xff");
        for (n, result) in
            [Some(json("null")), Some(large), Some(odd), None].into_iter().enumerate()
        {
            let (store, key) = (&stores[0], key(&format!("result \u{1F980}:'\"%{n}")));
            let number = granted(store, &key, LONG).await;
            assert!(store.complete(&key, number, result.as_ref(), LONG).await.unwrap());
            // Its answer may have been lost: once more, and the first result stays.
            assert!(store.complete(&key, number, Some(&json("0")), LONG).await.unwrap());
            let claim = stores[1].claim(&key, LONG).await.unwrap();
            assert_eq!(claim, Claim::Completed { result });
            assert!(!store.renew(&key, number, LONG).await.unwrap());
            assert!(!store.release(&key, number).await.unwrap());
        }
    }

    pub(super) async fn a_completion_is_forgotten_after_its_time<S: Store + Clone>(stores: &[S]) {
        let (store, key) = (&stores[0], key("keep"));
        let first = granted(store, &key, LONG).await;
        assert!(store.complete(&key, first, Some(&json("1")), SHORT).await.unwrap());
        let second = taken_over(store, &key).await;
        assert!(second > first);
        assert!(store.complete(&key, second, None, LONG).await.unwrap());
        assert_eq!(store.claim(&key, LONG).await.unwrap(), Claim::Completed { result: None });
    }

    pub(super) async fn keys_do_not_see_each_other<S: Store + Clone>(stores: &[S]) {
        let store = &stores[0];
        let longest = "k".repeat(1_000);
        for text in ["a", "A", "a ", "", longest.as_str()] {
            granted(store, &key(text), LONG).await;
        }
    }
}

/// What a store does, one step at a time: the model that the real ones are compared with.
#[derive(Debug, Clone, PartialEq)]
enum Model {
    Nothing,
    Claimed { number: u64, live: bool },
    Done { number: u64, result: Option<Bytes> },
}

#[derive(Debug, Clone)]
enum Step {
    Claim {
        live: bool,
    },
    /// Of the claim so many before the newest.
    Renew {
        back: usize,
        live: bool,
    },
    Complete {
        back: usize,
        result: bool,
        live: bool,
    },
    Release {
        back: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<bool>().prop_map(|live| Step::Claim { live }),
        1 => (0..3usize, any::<bool>()).prop_map(|(back, live)| Step::Renew { back, live }),
        2 => (0..3usize, any::<bool>(), any::<bool>())
            .prop_map(|(back, result, live)| Step::Complete { back, result, live }),
        2 => (0..3usize).prop_map(|back| Step::Release { back }),
    ]
}

impl Model {
    fn is_newest(&self, of: u64) -> bool {
        match self {
            Self::Nothing => true,
            Self::Claimed { number, .. } | Self::Done { number, .. } => *number == of,
        }
    }

    fn open_to(&self, of: u64) -> bool {
        self.is_newest(of) && !matches!(self, Self::Done { .. })
    }
}

fn time_of(live: bool) -> Duration {
    if live { LONG } else { LAPSING }
}

async fn compare(store: &impl Store, key: &Key, steps: &[Step]) {
    let mut model = Model::Nothing;
    let mut numbers: Vec<u64> = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let of = |back: usize| numbers.iter().rev().nth(back).copied();
        let seen = || format!("step {at} of {steps:?}, {model:?}");
        let mut lapses = false;
        match *step {
            Step::Claim { live } => {
                match (store.claim(key, time_of(live)).await.unwrap(), &model) {
                    (
                        Claim::Granted { number },
                        Model::Nothing | Model::Claimed { live: false, .. },
                    ) => {
                        assert!(numbers.iter().all(|old| number > *old), "{}", seen());
                        numbers.push(number);
                        (model, lapses) = (Model::Claimed { number, live }, !live);
                    }
                    (Claim::Held { .. }, Model::Claimed { live: true, .. }) => {}
                    (Claim::Completed { result }, Model::Done { result: expected, .. }) => {
                        assert_eq!(&result, expected, "{}", seen());
                    }
                    (other, _) => panic!("{other:?} at {}", seen()),
                }
            }
            Step::Renew { back, live } => {
                let Some(number) = of(back) else { continue };
                let mine = model.open_to(number);
                let renewed = store.renew(key, number, time_of(live)).await.unwrap();
                assert_eq!(renewed, mine, "{}", seen());
                if mine {
                    (model, lapses) = (Model::Claimed { number, live }, !live);
                }
            }
            Step::Complete { back, result, live } => {
                let Some(number) = of(back) else { continue };
                let mine = model.is_newest(number);
                let result = result.then(|| json("7"));
                let completed =
                    store.complete(key, number, result.as_ref(), time_of(live)).await.unwrap();
                assert_eq!(completed, mine, "{}", seen());
                if mine && model.open_to(number) {
                    lapses = !live;
                    let done = Model::Done { number, result };
                    model = if live { done } else { Model::Nothing };
                }
            }
            Step::Release { back } => {
                let Some(number) = of(back) else { continue };
                let mine = model.open_to(number);
                let released = store.release(key, number).await.unwrap();
                assert_eq!(released, mine, "{}", seen());
                if mine {
                    (model, lapses) = (Model::Claimed { number, live: false }, true);
                }
            }
        }
        if lapses {
            time::sleep(NAP).await;
        }
    }
}

fn no_sequence_of_calls_tells_it_from_the_model<S: Store>(
    open: impl AsyncFnOnce() -> (S, Box<dyn Send>),
) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (store, _server) = runtime.block_on(open());
    let cases = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) };
    let case = std::sync::atomic::AtomicU64::new(0);
    proptest!(cases, |(steps in prop::collection::vec(step(), 1..16))| {
        let case = case.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        runtime.block_on(compare(&store, &key(&format!("model {case}")), &steps));
    });
}

macro_rules! conforms {
    ($store:ident: $($behaviour:ident),* $(,)?) => {
        mod $store {
            $(
                #[tokio::test]
                async fn $behaviour() {
                    let (stores, _server) = super::$store().await;
                    super::behaviour::$behaviour(&stores).await;
                }
            )*

            #[test]
            fn no_sequence_of_calls_tells_it_from_the_model() {
                super::no_sequence_of_calls_tells_it_from_the_model(async || {
                    let (mut stores, server) = super::$store().await;
                    (stores.remove(0), server)
                });
            }
        }
    };
    ($($store:ident)*) => {
        $(conforms! { $store:
            among_fifty_claims_at_once_one_is_granted,
            a_held_claim_tells_the_rest_of_its_lease,
            when_the_lease_has_passed_another_takes_over_and_the_first_is_fenced_off,
            a_late_completion_counts_when_nobody_has_taken_over,
            a_renewed_claim_lasts,
            a_released_claim_is_free_at_once_and_numbers_go_on,
            a_result_is_returned_as_it_was_stored,
            a_completion_is_forgotten_after_its_time,
            keys_do_not_see_each_other,
        })*
    };
}

conforms! { in_memory in_redis in_postgres }

async fn in_memory() -> (Vec<Arc<MemoryStore>>, Box<dyn Send>) {
    let store = Arc::new(MemoryStore::new());
    (vec![Arc::clone(&store), Arc::clone(&store), store], Box::new(()))
}

async fn in_redis() -> (Vec<RedisStore>, Box<dyn Send>) {
    let server = redis().await;
    let stores = (0..3).map(|_| on_redis(&server)).collect();
    (stores, Box::new(server))
}

async fn in_postgres() -> (Vec<PostgresStore>, Box<dyn Send>) {
    let server = postgres().await;
    let stores: Vec<_> = (0..3).map(|_| PostgresStore::new(server.url()).unwrap()).collect();
    // All at once, as workers that are started together.
    let (a, b, c) = tokio::join!(stores[0].migrate(), stores[1].migrate(), stores[2].migrate());
    a.and(b).and(c).unwrap();
    (stores, Box::new(server))
}

fn on_redis(server: &Redis) -> RedisStore {
    RedisStore::new(server.url()).unwrap().prefix(server.prefix())
}

/// Claims and completions are there again after the server has died, and the store finds its way
/// back by itself.
async fn survives(store: &impl Store, kill: impl AsyncFnOnce(), start: impl AsyncFnOnce()) {
    let (done, running) = (key("done"), key("running"));
    let number = granted(store, &done, LONG).await;
    assert!(store.complete(&done, number, Some(&json("1")), LONG).await.unwrap());
    let number = granted(store, &running, LONG).await;
    kill().await;
    let error = store.claim(&done, LONG).await.unwrap_err();
    assert!(error.to_string().contains(" at 127.0.0.1:"), "{error}");
    start().await;
    let mut found: Option<Result<Claim, StoreError>> = None;
    eventually("the store answers again", async || {
        found = Some(store.claim(&done, LONG).await);
        matches!(found, Some(Ok(_)))
    })
    .await;
    let result = Some(json("1"));
    assert!(matches!(found, Some(Ok(Claim::Completed { result: kept })) if kept == result));
    assert!(matches!(store.claim(&running, LONG).await, Ok(Claim::Held { .. })));
    assert!(store.complete(&running, number, None, LONG).await.unwrap());
}

#[tokio::test]
async fn redis_may_be_killed_in_the_middle() {
    let server = redis_of_its_own().await;
    let store = on_redis(&server);
    survives(&store, async || server.kill(), async || server.start().await).await;
}

#[tokio::test]
async fn postgres_may_be_killed_in_the_middle() {
    let server = postgres_of_its_own().await;
    let store = PostgresStore::new(server.url()).unwrap();
    store.migrate().await.unwrap();
    survives(&store, async || server.kill(), async || server.start().await).await;
}

#[tokio::test]
async fn postgres_removes_what_has_been_over_for_an_hour() {
    let server: Postgres = postgres().await;
    let store = PostgresStore::new(server.url()).unwrap();
    store.migrate().await.unwrap();
    for n in 0..5 {
        let key = key(&n.to_string());
        let number = granted(&store, &key, LONG).await;
        assert!(store.complete(&key, number, None, LONG).await.unwrap());
    }
    let old = "UPDATE forebay_claims SET until = now() - interval '2 hours' WHERE key < 'test work.do key 3'";
    server.sql(old).await;
    assert_eq!(store.clean().await.unwrap(), 3);
    assert_eq!(server.sql("SELECT count(*) FROM forebay_claims").await, "2");
}

#[tokio::test]
async fn an_error_names_the_server_and_never_the_password() {
    let urls = ["redis://user:hunter2@127.0.0.1:1/0", "postgres://user:hunter2@127.0.0.1:1/db"];
    let redis = RedisStore::new(urls[0]).unwrap();
    let postgres = PostgresStore::new(urls[1]).unwrap();
    let errors = [
        redis.claim(&key("a"), LONG).await.unwrap_err().to_string(),
        postgres.claim(&key("a"), LONG).await.unwrap_err().to_string(),
        RedisStore::new("redis//hunter2").unwrap_err().to_string(),
        PostgresStore::new("postgres://a:hunter2@h:port/db").unwrap_err().to_string(),
        format!("{redis:?}{postgres:?} at 127.0.0.1:1"),
    ];
    for error in &errors {
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert!(errors[0].contains("Redis at 127.0.0.1:1"), "{}", errors[0]);
    assert!(errors[1].contains("PostgreSQL at 127.0.0.1:1"), "{}", errors[1]);
    assert!(errors[1].contains("refused"), "{}", errors[1]);
}
