//! The hub on real RabbitMQ: one file a subject, one behaviour a test.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod faults;
mod jobs;
mod replay;
mod sessions;
mod support;
