//! `forebay-run` on real RabbitMQ: one file a subject, one behaviour a test.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod check;
mod digest;
mod exec;
mod http;
mod logs;
#[cfg(feature = "otel")]
mod otel;
mod shutdown;
mod support;
