//! How a job gets onto RabbitMQ.
//!
//! A [`Producer`] publishes [`Job`]s with confirms, through restarts of the broker; delays and
//! schedules need no plugin. The worker half is the crate `forebay-worker`.

mod access;
mod bulk;
mod call;
mod config;
mod error;
/// The AMQP side, for `forebay-worker` and for those who need a raw channel: lapin types stand in
/// its signatures, and any release may change it.
pub mod link;
/// For our own binaries: any release may change it.
#[cfg(feature = "manual")]
pub mod manual;
mod options;
#[cfg(feature = "otel")]
pub mod otel;
mod producer;
/// For our own binaries: any release may change it.
pub mod program;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wire;

pub use config::{Config, ConfigError, Declare};
pub use error::{
    BulkError, CallError, ConnectError, DeadError, EmitError, PublishError, StreamError,
    TopologyError,
};
pub use link::dead::{DeadLetter, DeadLetters, Done, Filter, Listing, Pile, RedriveOptions};
pub use link::inspect::{Inspector, QueueCount};
pub use link::stream::{EventLog, Events, Gap, Read, Start, Stored};
pub use options::PublishOptions;
pub use producer::{Destination, Producer, Receipt};
pub use telemetry::describe_metrics;
pub use wire::delay::{Delay, DelayTooLong};
pub use wire::envelope::{BrokerMarks, DeadMark, Envelope};
pub use wire::event::{Event, EventKind, Malformed};
pub use wire::failure::{Failure, Reason};
pub use wire::job::Job;
pub use wire::signature::{BadSignature, InvalidKeys, SigningKeys};
pub use wire::token::{InvalidToken, Token};
pub use wire::topology::{
    InvalidName, QueueType, Retention, Topology, check_kind, check_queue_name,
};
pub use wire::trace::{InvalidTraceparent, TraceContext};
