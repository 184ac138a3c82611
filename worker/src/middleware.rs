//! What runs around every handler.
//! In: a context and the rest of the chain. Out: the handler's result, or something else.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::context::Context;
use crate::error::JobResult;
use crate::handler::{Output, Ready};

pub(crate) type Middleware<S> =
    Arc<dyn Fn(Context<S>, Next<S>) -> BoxFuture<'static, JobResult<Output>> + Send + Sync>;

/// The rest of the chain: further middleware, then the handler.
///
/// ```
/// use forebay_worker::{Context, JobResult, Next, Output};
///
/// async fn log_slow_jobs(cx: Context<()>, next: Next<()>) -> JobResult<Output> {
///     let began = std::time::Instant::now();
///     let result = next.run(cx.clone()).await;
///     if began.elapsed().as_secs() > 1 {
///         println!("job {} took {:?}", cx.id(), began.elapsed());
///     }
///     result
/// }
/// ```
pub struct Next<S> {
    chain: Arc<[Middleware<S>]>,
    at: usize,
    handler: Ready<S>,
}

impl<S> Next<S> {
    pub(crate) fn new(chain: Arc<[Middleware<S>]>, handler: Ready<S>) -> Self {
        Self { chain, at: 0, handler }
    }

    /// Runs the rest and returns its result.
    ///
    /// # Errors
    /// What the handler or a middleware further in returns.
    pub async fn run(mut self, cx: Context<S>) -> JobResult<Output> {
        match self.chain.get(self.at).cloned() {
            Some(middleware) => {
                self.at += 1;
                middleware(cx, self).await
            }
            None => (self.handler)(cx).await,
        }
    }
}

impl<S> fmt::Debug for Next<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("left", &(self.chain.len() - self.at)).finish()
    }
}
