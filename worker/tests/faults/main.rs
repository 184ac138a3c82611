//! The proof that no job is lost: a recorded workload through one fault after the other, on real
//! brokers, with real processes. Without further words each fault comes once, with random timing;
//! `docker/faults.sh` repeats them for as long as it is told.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod campaign;
mod checker;
mod child;
mod document;
mod fault;
mod leftover;
mod record;
mod run;
mod site;
mod table;
mod told;
mod workload;
