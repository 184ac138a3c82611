//! The worker on real RabbitMQ: one file a subject, one behaviour a test.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]
#![expect(clippy::needless_pass_by_value, reason = "handlers take what they are given")]

mod batches;
mod causes;
mod cluster;
mod crash;
mod drain;
mod examples;
mod foreign;
mod hostile;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod idempotency;
mod invariants;
mod long_jobs;
mod places;
mod raw;
mod roles;
mod settlement;
mod signatures;
mod status;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod stores;
mod supervision;
mod support;
mod traces;
mod tracking;
