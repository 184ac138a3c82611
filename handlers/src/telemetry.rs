//! Metrics of servers: all their names, and what is counted by them.
//! In: what the pool sees. Out: numbers for the recorder that the program has installed with the
//! `metrics` facade; without one they go nowhere.

use std::fmt;

use metrics::{Counter, Gauge, Unit, describe_counter, describe_gauge};

const READY: &str = "forebay_server_ready";
const RUNNING: &str = "forebay_server_running";
const ENDS: &str = "forebay_server_ends_total";

/// Tells the installed recorder units and meanings of the metrics of servers, which are labelled
/// with the server's name.
///
/// Those of workers are described by [`forebay_worker::describe_metrics`]. Install the recorder
/// before a server starts: what was made earlier counts for nobody.
pub fn describe_metrics() {
    let one = Unit::Count;
    describe_gauge!(READY, one, "Processes of a server that take jobs.");
    describe_gauge!(RUNNING, one, "Jobs that the processes of a server have.");
    describe_counter!(ENDS, one, "Processes of a server that ended or were ended, by cause.");
}

/// Why a process of a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, or killed by somebody else.
    Died,
    /// It said or did what makes it useless.
    Broken,
    /// A run did not end after it was cancelled.
    Hung,
    /// It did not say in time that it is ready.
    NotReady,
    /// It could not be started at all.
    NotStarted,
    /// It had done as many jobs as it was to do.
    Finished,
}

/// The numbers of one server. Handles are made once: looking one up costs more than a job.
pub(crate) struct ServerMeter {
    ready: Gauge,
    running: Gauge,
    ends: [Counter; End::ALL.len()],
}

impl End {
    const ALL: [Self; 6] =
        [Self::Died, Self::Broken, Self::Hung, Self::NotReady, Self::NotStarted, Self::Finished];

    fn name(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::Broken => "broken",
            Self::Hung => "hung",
            Self::NotReady => "not_ready",
            Self::NotStarted => "not_started",
            Self::Finished => "finished",
        }
    }
}

impl ServerMeter {
    pub(crate) fn new(server: &str) -> Self {
        let server = || server.to_owned();
        Self {
            ready: metrics::gauge!(READY, "server" => server()),
            running: metrics::gauge!(RUNNING, "server" => server()),
            ends: End::ALL
                .map(|end| metrics::counter!(ENDS, "server" => server(), "cause" => end.name())),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floats, and these are small")]
    pub(crate) fn show(&self, ready: usize, running: usize) {
        self.ready.set(ready as f64);
        self.running.set(running as f64);
    }

    pub(crate) fn ended(&self, end: End) {
        self.ends[end as usize].increment(1);
    }
}

impl fmt::Debug for ServerMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerMeter").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_own_counter() {
        for (place, end) in End::ALL.into_iter().enumerate() {
            assert_eq!(end as usize, place, "{}", end.name());
        }
    }
}
