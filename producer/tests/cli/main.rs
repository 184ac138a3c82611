//! The `forebay` binary against a real broker.
