//! How a job gets off RabbitMQ: the worker runtime.
//!
//! A [`Worker`] consumes queues, runs the handler registered for each job's kind, acks it when it
//! succeeds, retries it when it fails, and keeps it as a dead letter when retries are spent.

mod acker;
mod backlog;
mod batch;
mod builder;
mod consumer;
mod context;
mod error;
mod execute;
mod express;
mod generation;
mod handler;
pub mod idempotency;
mod intake;
mod load;
mod loss;
mod meter;
mod middleware;
#[cfg(feature = "otel")]
mod otel;
mod presence;
mod retry;
mod running;
mod runtime;
mod settle;
mod status;
mod telemetry;
mod telling;
#[cfg(feature = "testing")]
pub mod testing;
mod told;
mod verdict;

pub use batch::{BatchContext, BatchOptions, BatchResult, Item, Results};
pub use builder::{QueueOptions, WorkerBuilder};
pub use context::Context;
pub use error::{BuildError, JobError, JobResult, RunError};
pub use forebay_producer::{
    CallError, Config, ConfigError, ConnectError, Declare, EmitError, Envelope, Failure,
    InvalidKeys, Job, Producer, PublishError, PublishOptions, QueueType, Reason, Receipt,
    Retention, SigningKeys, TraceContext,
};
pub use handler::{HandlerOptions, Output, without_value};
pub use idempotency::Idempotency;
pub use meter::describe_metrics;
pub use middleware::Next;
pub use retry::Retry;
pub use running::RunningJob;
pub use runtime::{Controls, Running, Worker};
pub use status::QueueStatus;
pub use telemetry::Summary;
