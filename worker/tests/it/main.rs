//! The worker on real RabbitMQ: one file a subject, one behaviour a test.

mod settlement;
mod support;
