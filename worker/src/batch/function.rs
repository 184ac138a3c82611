//! A batch handler's function, whatever its types are.
//! In: payloads as bytes, then all of a batch. Out: decoded payloads, then a result for each.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use forebay_producer::Job;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use tracing::Span;

use super::BatchOptions;
use super::context::{BatchContext, Item};
use super::results::BatchResult;
use crate::context::Context;
use crate::error::{JobError, JobResult};
use crate::handler::{Decode, Handler, HandlerOptions, Output, Undecoded, from_json};

/// A payload that its handler's own function decoded.
pub(crate) type Payload = Box<dyn Any + Send>;

/// One job of a batch that is about to run.
pub(crate) struct Handed<S> {
    pub(crate) payload: Payload,
    pub(crate) cx: Context<S>,
}

type DecodeOne = dyn Fn(&Bytes) -> Result<Payload, Undecoded> + Send + Sync;
type Call<S> = dyn Fn(Vec<Handed<S>>, BatchContext<S>) -> BoxFuture<'static, JobResult<Vec<JobResult<Output>>>>
    + Send
    + Sync;

/// A function that takes many jobs at once.
pub(crate) struct Together<S> {
    pub(crate) options: BatchOptions,
    decode: Box<DecodeOne>,
    call: Box<Call<S>>,
}

impl<S: Send + Sync + 'static> Together<S> {
    fn new<P, T, F, Fut>(
        options: BatchOptions,
        decode: impl Fn(&Bytes) -> Result<P, Undecoded> + Send + Sync + 'static,
        output: fn(T) -> JobResult<Output>,
        function: F,
    ) -> Self
    where
        P: Send + 'static,
        T: Send + 'static,
        F: Fn(Vec<Item<P>>, BatchContext<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = BatchResult<T>> + Send + 'static,
    {
        let function = Arc::new(function);
        let call = move |handed: Vec<Handed<S>>, cx| {
            let function = Arc::clone(&function);
            // Called inside the future, so that a panic before the first await is caught as well.
            async move {
                let items: Vec<_> = handed.into_iter().enumerate().map(item::<S, P>).collect();
                let count = items.len();
                function(items, cx).await?.of_each(count, output)
            }
            .boxed()
        };
        let decode = move |payload: &Bytes| decode(payload).map(|job| Box::new(job) as Payload);
        Self { options, decode: Box::new(decode), call: Box::new(call) }
    }

    pub(crate) fn decode(&self, payload: &Bytes) -> Result<Payload, Undecoded> {
        (self.decode)(payload)
    }

    /// Runs the function once. Its result has one for each job, in their order.
    pub(crate) fn call(
        &self,
        handed: Vec<Handed<S>>,
        cx: BatchContext<S>,
    ) -> BoxFuture<'static, JobResult<Vec<JobResult<Output>>>> {
        (self.call)(handed, cx)
    }

    /// A job alone is a batch of one: a suspect, or a run without a broker.
    async fn call_for_one(&self, payload: Payload, cx: Context<S>) -> JobResult<Output> {
        let all = BatchContext::new(cx.clone(), cx.stop().clone(), cx.span().clone());
        let mut results = self.call(vec![Handed { payload, cx }], all).await?;
        let nothing = || Err(JobError::retry(anyhow::anyhow!("there is no result")));
        results.pop().unwrap_or_else(nothing)
    }
}

fn item<S: Send + Sync + 'static, P: 'static>((place, handed): (usize, Handed<S>)) -> Item<P> {
    let payload = handed.payload.downcast().expect("it was decoded for this very function");
    Item::new(*payload, place, handed.cx)
}

impl<S> fmt::Debug for Together<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Together").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<S: Send + Sync + 'static> Handler<S> {
    pub(crate) fn batch<J, T, F, Fut>(
        options: HandlerOptions,
        batch: BatchOptions,
        function: F,
    ) -> Self
    where
        J: Job,
        T: Serialize + Send + 'static,
        F: Fn(Vec<Item<J>>, BatchContext<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = BatchResult<T>> + Send + 'static,
    {
        let decode = |payload: &Bytes| from_json::<J>(payload);
        let together = Together::new(batch, decode, |value: T| Output::of(&value), function);
        Self::together(J::KIND, J::QUEUE, options, together)
    }

    pub(crate) fn raw_batch<F, Fut>(
        kind: &str,
        options: HandlerOptions,
        batch: BatchOptions,
        function: F,
    ) -> Self
    where
        F: Fn(Vec<Item<Bytes>>, BatchContext<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = BatchResult<Output>> + Send + 'static,
    {
        let decode = |payload: &Bytes| {
            let _: serde::de::IgnoredAny = from_json(payload)?;
            Ok(payload.clone())
        };
        Self::together(kind, "default", options, Together::new(batch, decode, Ok, function))
    }

    fn together(
        kind: &str,
        queue: &str,
        mut options: HandlerOptions,
        together: Together<S>,
    ) -> Self {
        options.concurrency.get_or_insert(1);
        options.batch = Some(together.options);
        let together = Arc::new(together);
        let alone = Arc::clone(&together);
        let decode: Decode<S> = Box::new(move |payload| {
            let (payload, together) = (alone.decode(payload)?, Arc::clone(&alone));
            Ok(Box::new(move |cx| async move { together.call_for_one(payload, cx).await }.boxed()))
        });
        let mut handler = Self::new(kind, queue, options, decode);
        handler.together = Some(together);
        handler
    }
}

/// The span of a batch.
pub(super) fn span<S>(number: u64, jobs: &[Handed<S>]) -> Span {
    let first = jobs.first().map(|handed| &handed.cx);
    let span = crate::telemetry::batch_span(
        number,
        first.map_or("-", Context::kind),
        first.map_or("-", Context::queue),
        jobs.len(),
    );
    #[cfg(feature = "otel")]
    for handed in jobs {
        // A link to each: a batch belongs to no one trace.
        span.follows_from(handed.cx.span());
    }
    span
}
