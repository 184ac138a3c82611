//! Ready-made functions for Forebay workers.
//!
//! Any program ([`Exec`]), any program that stays ([`Server`]), any HTTP endpoint ([`Http`]) and the
//! built-in `file.digest` ([`FileDigest`]), `email.send` (`Email`) and `image.thumbnail`
//! (`Thumbnail`) as handlers of a [`Worker`](forebay_worker::Worker), one by one or all together from a `forebay.toml`
//! ([`Manifest`], [`app`]). The binary `forebay-run` is that and nothing more.
//!
//! # Features
//!
//! `bench`, `cli`, `email` and `image` are on by default, and the image has all (`full`); a library does well with `default-features = false` and those
//! it needs.
//!
//! | feature | brings |
//! |---|---|
//! | `bench` | `forebay-run bench`, with the crate lapin to compare with |
//! | `cli` | the binary `forebay-run` |
//! | `email` | `email.send`: `Email`, with the crate lettre |
//! | `image` | `image.thumbnail`: `Thumbnail`, with the crate image, for JPEG, PNG, WebP and GIF |
//! | `postgres`, `redis` | `[idempotency]` may keep its claims there |
//! | `otel` | `forebay-run` exports spans over OTLP when `OTEL_EXPORTER_OTLP_ENDPOINT` is set |

pub mod app;
mod batch;
mod capture;
mod digest;
#[cfg(feature = "email")]
mod email;
mod exec;
mod guardian;
mod http;
pub mod manifest;
#[cfg(feature = "image")]
mod place;
mod process;
mod roots;
mod serve;
mod signature;
mod telemetry;
#[cfg(feature = "image")]
mod thumbnail;
mod wish;
mod word;

pub use digest::FileDigest;
#[cfg(feature = "email")]
pub use email::{Email, EmailError, EmailOptions, SmtpTls};
pub use exec::{Exec, MissingProgram};
pub use http::{Http, HttpError};
pub use manifest::{Fault, Faults, Manifest};
pub use roots::RootsError;
pub use serve::{Server, ServerOptions, ServerStatus};
pub use signature::{InvalidSecret, Secret};
pub use telemetry::describe_metrics;
#[cfg(feature = "image")]
pub use thumbnail::{PictureFormat, Thumbnail, ThumbnailOptions};
