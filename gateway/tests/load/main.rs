//! Many clients on one gateway, which is a process of its own: what each costs, how long an event
//! takes, how a crowd gets what it has missed; and that each client gets each event once and in
//! order. As a test it is short and judges only the last; `docker/load.sh` measures.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod campaign;
mod client;
mod idle;
mod ledger;
mod live;
mod program;
mod replay;
mod report;
mod site;
