//! The gateway on a real RabbitMQ, with clients of every transport.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod browser;
mod ends;
mod faults;
mod hostile;
mod limits;
mod openapi;
mod pages;
mod polling;
mod program;
mod publishing;
mod rights;
mod socketio;
mod support;
