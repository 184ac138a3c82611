//! The proof that no client misses an event: clients of every door that keep their newest token and
//! come back with it, through one fault after the other, on real brokers, with real processes.
//! Without further words each fault comes once; `docker/faults.sh` repeats them for as long as it is
//! told.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod campaign;
mod checker;
mod diary;
mod door;
mod fault;
mod follower;
mod site;
mod table;
mod truth;
mod worker;
mod workload;
