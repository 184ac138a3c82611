//! Jobs and their events in a browser.
//!
//! What a client sends over Socket.IO, WebSocket or HTTP becomes a job; what happens to jobs, and what
//! handlers emit, comes back over the same socket or by Server-Sent Events. A RabbitMQ stream is the
//! only memory: a client that was away, or whose gateway was, gets what it missed, then goes on live.

mod auth;
mod crowd;
mod description;
mod doors;
mod gateway;
mod haste;
mod http;
mod hub;
mod ingress;
mod limits;
mod operation;
mod pace;
mod page;
mod pattern;
mod peer;
mod refusal;
mod request;
mod server;
mod settings;
mod socketio;
mod sse;
mod stall;
mod telemetry;
mod tls;
mod traffic;
mod ws;

pub use gateway::{Gateway, OpenError};
pub use hub::{
    EndReason, Ended, Entry, Eyes, Hub, HubOptions, HubStatus, Item, JobState, Room, Session,
    SessionHandle, StartFrom, SubscribeError, Subscribed,
};
pub use refusal::{Code, Refusal};
pub use settings::{
    Anonymous, Auth, Broker, Faults, LimitSettings, OperationSettings, PublishSettings, Replay,
    Settings, Tls,
};
pub use telemetry::describe_metrics;
