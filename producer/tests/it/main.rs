//! The producer on real RabbitMQ, and what it writes on the wire: one file a subject, one behaviour
//! a test.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod bulk;
mod calls;
mod dead_letters;
mod delays;
mod events;
mod examples;
mod golden;
mod hosts;
mod ladder;
mod other_languages;
mod publishing;
mod stream;
mod supervision;
mod support;
mod tls;
mod topology;
mod trouble;
