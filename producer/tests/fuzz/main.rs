//! Hostile input, target by target: each replays its corpus and then tries inputs of its own.
//! `docs/testing.md` says how to let one run for longer.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod envelope;
mod event;
mod frames;
mod source;
mod texts;
