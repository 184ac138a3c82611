//! Ready-made functions for Forebay workers.
//!
//! Any program ([`Exec`]), any long-lived program ([`Server`]), any HTTP endpoint ([`Http`]) and `file.digest` ([`FileDigest`]) as
//! handlers of a [`Worker`](forebay_worker::Worker), one by one or all together from a
//! `forebay.toml` ([`Manifest`], [`app`]). The binary `forebay-run` is that and nothing more.

pub mod app;
mod capture;
mod digest;
mod exec;
mod guardian;
mod http;
pub mod manifest;
mod process;
mod serve;
mod signature;

pub use digest::{FileDigest, RootsError};
pub use exec::{Exec, MissingProgram};
pub use http::{Http, HttpError};
pub use manifest::{Fault, Faults, Manifest};
pub use serve::{Server, ServerOptions, ServerStatus};
pub use signature::{InvalidSecret, Secret};
