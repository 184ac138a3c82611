//! What travels: jobs, envelopes, names and delays. Pure data, no broker.

pub mod delay;
pub mod envelope;
pub mod event;
pub mod failure;
pub(crate) mod headers;
pub mod job;
pub mod signature;
pub mod token;
pub mod topology;
pub mod trace;
