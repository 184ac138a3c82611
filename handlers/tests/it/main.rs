//! `forebay-run` on real RabbitMQ: one file a subject, one behaviour a test.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod batches;
#[cfg(feature = "bench")]
mod bench;
mod check;
mod digest;
#[cfg(feature = "email")]
mod email;
mod events;
mod exec;
mod http;
#[cfg(all(feature = "postgres", feature = "redis"))]
mod idempotency;
mod logs;
mod operation;
#[cfg(feature = "otel")]
mod otel;
mod secrets;
mod serve;
mod shutdown;
#[cfg(feature = "email")]
mod smtp;
mod support;
#[cfg(feature = "image")]
mod thumbnail;
