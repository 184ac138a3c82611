//! The registry: which function handles which kind.
//! In: typed functions. Out: functions from bytes to an [`Output`], found by kind.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_producer::Job;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::batch::{BatchOptions, Together};
use crate::context::Context;
use crate::error::JobResult;
use crate::retry::Retry;

/// What a handler's run needs beyond the job: timeout, retries, concurrency.
///
/// ```
/// use forebay_worker::{HandlerOptions, Retry};
/// use std::time::Duration;
///
/// let options = HandlerOptions::new().timeout(Duration::from_secs(60)).retry(Retry::never());
/// # let _ = options;
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct HandlerOptions {
    pub(crate) timeout: Duration,
    pub(crate) retry: Retry,
    pub(crate) concurrency: Option<usize>,
    pub(crate) queue: Option<String>,
    pub(crate) idempotent: bool,
    /// Set by those that register batch handlers.
    pub(crate) batch: Option<BatchOptions>,
}

impl Default for HandlerOptions {
    fn default() -> Self {
        Self {
            timeout: Self::TIMEOUT,
            retry: Retry::default(),
            concurrency: None,
            queue: None,
            idempotent: true,
            batch: None,
        }
    }
}

impl HandlerOptions {
    /// How long one run may take if nothing else is said: 5 minutes.
    pub const TIMEOUT: Duration = Duration::from_secs(300);

    /// All defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long one run may take. Default: [`TIMEOUT`](Self::TIMEOUT).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the retry policy. Default: [`Retry::default`].
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Sets how many of this handler run at once in this process. Default: as many as its queue
    /// allows; for a blocking handler, the number of cores; for a batch handler, which counts
    /// batches, 1.
    pub fn concurrency(mut self, most: usize) -> Self {
        self.concurrency = Some(most);
        self
    }

    /// Sets whether the worker's [`Idempotency`](crate::Idempotency) applies to this handler.
    /// Default: `true`; of no meaning to a worker without one.
    pub fn idempotent(mut self, applies: bool) -> Self {
        self.idempotent = applies;
        self
    }

    /// Sets the queue whose worker this handler belongs to. Default: the job type's.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }
}

/// A handler's result as JSON; nothing for `()`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output(Option<Bytes>);

impl Output {
    /// No result.
    pub fn none() -> Self {
        Self(None)
    }

    /// A result that is JSON already.
    pub fn from_json(json: impl Into<Bytes>) -> Self {
        Self(Some(json.into()))
    }

    /// The result as JSON text; `None` for `()`.
    pub fn json(&self) -> Option<&Bytes> {
        self.0.as_ref()
    }

    pub(crate) fn of<T: Serialize + 'static>(value: &T) -> JobResult<Self> {
        if std::any::TypeId::of::<T>() == std::any::TypeId::of::<()>() {
            return Ok(Self(None));
        }
        Ok(Self(Some(serde_json::to_vec(value)?.into())))
    }
}

/// Why a payload did not reach its handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undecoded {
    /// Not JSON at all: no deploy will mend it.
    NotJson(String),
    /// JSON of another shape: a newer handler may know it.
    OtherShape(String),
}

/// A decoded job, ready to run once.
pub(crate) type Ready<S> =
    Box<dyn FnOnce(Context<S>) -> BoxFuture<'static, JobResult<Output>> + Send>;

pub(crate) type Decode<S> = Box<dyn Fn(&Bytes) -> Result<Ready<S>, Undecoded> + Send + Sync>;

/// One registered handler.
pub(crate) struct Handler<S> {
    pub(crate) kind: String,
    pub(crate) queue: String,
    pub(crate) options: HandlerOptions,
    /// Permits of this handler alone, if it has a limit.
    pub(crate) gate: Option<Arc<Semaphore>>,
    decode: Decode<S>,
    /// The function of a batch handler; `decode` is for a batch of one then.
    pub(crate) together: Option<Arc<Together<S>>>,
}

impl<S> Handler<S> {
    pub(crate) fn decode(&self, payload: &Bytes) -> Result<Ready<S>, Undecoded> {
        (self.decode)(payload)
    }
}

impl<S> fmt::Debug for Handler<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").field("kind", &self.kind).field("queue", &self.queue).finish()
    }
}

impl<S: Send + Sync + 'static> Handler<S> {
    pub(crate) fn typed<J, T, F, Fut>(options: HandlerOptions, function: F) -> Self
    where
        J: Job,
        T: Serialize + Send + 'static,
        F: Fn(J, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = JobResult<T>> + Send + 'static,
    {
        let function = Arc::new(function);
        let decode: Decode<S> = Box::new(move |payload| {
            let job: J = from_json(payload)?;
            let function = Arc::clone(&function);
            Ok(Box::new(move |cx| async move { Output::of(&function(job, cx).await?) }.boxed()))
        });
        Self::new(J::KIND, J::QUEUE, options, decode)
    }

    pub(crate) fn blocking<J, T, F>(mut options: HandlerOptions, function: F) -> Self
    where
        J: Job,
        T: Serialize + Send + 'static,
        F: Fn(J, Context<S>) -> JobResult<T> + Send + Sync + 'static,
    {
        options.concurrency.get_or_insert_with(cores);
        let function = Arc::new(function);
        let decode: Decode<S> = Box::new(move |payload| {
            let job: J = from_json(payload)?;
            let function = Arc::clone(&function);
            let run = move |cx| Output::of(&function(job, cx)?);
            Ok(Box::new(move |cx| run_blocking(run, cx).boxed()))
        });
        Self::new(J::KIND, J::QUEUE, options, decode)
    }

    pub(crate) fn raw<F, Fut>(kind: &str, options: HandlerOptions, function: F) -> Self
    where
        F: Fn(Bytes, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = JobResult<Output>> + Send + 'static,
    {
        let function = Arc::new(function);
        let decode: Decode<S> = Box::new(move |payload| {
            let _: serde::de::IgnoredAny = from_json(payload)?;
            let (function, payload) = (Arc::clone(&function), payload.clone());
            Ok(Box::new(move |cx| async move { function(payload, cx).await }.boxed()))
        });
        Self::new(kind, "default", options, decode)
    }

    pub(crate) fn raw_blocking<F>(kind: &str, mut options: HandlerOptions, function: F) -> Self
    where
        F: Fn(Bytes, Context<S>) -> JobResult<Output> + Send + Sync + 'static,
    {
        options.concurrency.get_or_insert_with(cores);
        let function = Arc::new(function);
        Self::raw(kind, options, move |payload, cx| {
            let function = Arc::clone(&function);
            run_blocking(move |cx| function(payload, cx), cx)
        })
    }

    pub(crate) fn new(kind: &str, queue: &str, options: HandlerOptions, decode: Decode<S>) -> Self {
        Self {
            kind: kind.to_owned(),
            queue: options.queue.clone().unwrap_or_else(|| queue.to_owned()),
            gate: options.concurrency.map(|most| Arc::new(Semaphore::new(most.max(1)))),
            options,
            decode,
            together: None,
        }
    }
}

/// The thread keeps its place until the function really ends, timeout or not: otherwise timeouts
/// would pile up threads without bound.
async fn run_blocking<S, F>(function: F, cx: Context<S>) -> JobResult<Output>
where
    S: Send + Sync + 'static,
    F: FnOnce(Context<S>) -> JobResult<Output> + Send + 'static,
{
    let (place, ends) = (cx.take_place(), cx.begin_thread());
    let span = cx.span().clone();
    let run = tokio::task::spawn_blocking(move || {
        let (_place, _ends) = (place, ends);
        let _in_span = span.entered();
        function(cx)
    });
    match run.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(error.into()),
    }
}

/// Cores of this machine.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Tells invalid JSON from valid JSON of another shape; the latter with the path to the fault.
pub(crate) fn from_json<J: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<J, Undecoded> {
    // The common path parses once, straight into the handler's type.
    let error = match serde_json::from_slice::<J>(payload) {
        Ok(job) => return Ok(job),
        Err(error) => error,
    };
    match error.classify() {
        serde_json::error::Category::Data => {}
        _ => return Err(Undecoded::NotJson(error.to_string())),
    }
    // A wrong shape may be found before the text stops being JSON.
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(payload) {
        return Err(Undecoded::NotJson(error.to_string()));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let explained = serde_path_to_error::deserialize::<_, J>(&mut deserializer);
    let why = explained.err().map_or_else(
        || without_value(&error.to_string()),
        |at| format!("{}: {}", at.path(), without_value(&at.inner().to_string())),
    );
    Err(Undecoded::OtherShape(why))
}

/// What serde says about JSON of another shape, without the value that it found there: such words
/// go into logs and dead letters' histories, and a payload does not.
///
/// For handlers that read their payload themselves; of a typed one the worker does it.
///
/// ```
/// let error = serde_json::from_str::<u64>("\"hush\"").unwrap_err().to_string();
/// assert_eq!(forebay_worker::without_value(&error), "invalid type, expected u64 at line 1 column 6");
/// ```
pub fn without_value(words: &str) -> String {
    let found = ["invalid type: ", "invalid value: ", "unknown variant "];
    let Some(kind) = found.iter().find(|kind| words.starts_with(**kind)) else {
        return words.to_owned();
    };
    match words.rsplit_once(", expected ") {
        Some((_, expected)) => {
            format!("{}, expected {expected}", kind.trim_end_matches([':', ' ']))
        }
        None => kind.trim_end_matches([':', ' ']).to_owned(),
    }
}

/// Handlers by kind.
pub(crate) struct Registry<S> {
    handlers: HashMap<String, Arc<Handler<S>>>,
}

impl<S> Registry<S> {
    pub(crate) fn new() -> Self {
        Self { handlers: HashMap::new() }
    }

    /// Adds a handler; `false` if the kind has one already.
    pub(crate) fn add(&mut self, handler: Handler<S>) -> bool {
        if self.handlers.contains_key(&handler.kind) {
            return false;
        }
        self.handlers.insert(handler.kind.clone(), Arc::new(handler));
        true
    }

    pub(crate) fn find(&self, kind: &str) -> Option<&Arc<Handler<S>>> {
        self.handlers.get(kind)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Handler<S>>> {
        self.handlers.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Serialize, Deserialize)]
    struct Mail {
        to: Vec<String>,
    }

    #[test]
    fn a_value_of_the_payload_is_not_repeated() {
        for (words, expected) in [
            (
                "invalid type: string \"4111, expected x\", expected u64",
                "invalid type, expected u64",
            ),
            (
                "unknown variant `s3cret`, expected one of `a`, `b`",
                "unknown variant, expected one of `a`, `b`",
            ),
            ("unknown variant `s3cret`, there are no variants", "unknown variant"),
            ("missing field `to` at line 1 column 2", "missing field `to` at line 1 column 2"),
        ] {
            assert_eq!(without_value(words), expected);
        }
    }

    #[test]
    fn invalid_json_and_a_wrong_shape_are_told_apart() {
        let decode = |payload: &[u8]| from_json::<Mail>(payload).unwrap_err();
        assert!(matches!(decode(b"{not json"), Undecoded::NotJson(_)));
        assert!(matches!(decode(b""), Undecoded::NotJson(_)));
        assert!(matches!(decode(b"\xff\xfe"), Undecoded::NotJson(_)));
        assert!(matches!(decode(b"{\"to\": 7, oops"), Undecoded::NotJson(_)));
        let Undecoded::OtherShape(why) = decode(b"{\"to\": [\"a\", 7]}") else { panic!() };
        assert_eq!(why, "to[1]: invalid type, expected a string at line 1 column 14");
    }
}
