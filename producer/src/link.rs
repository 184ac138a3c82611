//! Everything that speaks AMQP: connections, declarations, publishing, dead letters.

pub mod bare;
pub mod connection;
pub mod dead;

pub mod declare;
mod dial;
pub(crate) mod emitter;
pub mod examine;
pub mod fault;
pub mod greeting;
pub mod inspect;
pub mod io;
pub mod mend;
pub mod publisher;
pub mod remove;
pub(crate) mod returned;
pub(crate) mod sieve;
pub mod stream;
mod tls;
pub mod transition;
pub(crate) mod window;

pub use crate::config::after;
