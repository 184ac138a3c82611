//! What can be measured.
//! In: names on the command line. Out: for each, who competes, how many jobs, what its figures are.

use std::fmt;

use forebay_worker::QueueType;
use serde::{Deserialize, Serialize};

use super::order::{Contestant, How, Work};

/// Unless the command line says otherwise.
pub(crate) const PREFETCH: u16 = 200;
/// Likewise.
pub(crate) const CONCURRENCY: usize = 64;

/// One kind of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    Drain,
    PublishBulk,
    Latency,
    PublishOne,
    PublishWindowed,
    DrainSleep,
    DrainCpu,
    DrainFailing,
    Burst,
    Workers,
    MemoryBacklog,
    MemoryPayload,
    Idle,
    Start,
    StartFresh,
    DrainTracked,
    PublishTracked,
}

/// A scenario with its settings: what is measured round after round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) scenario: Scenario,
    pub(crate) queue_type: QueueType,
    pub(crate) prefetch: u16,
    pub(crate) concurrency: usize,
    /// Worker processes on the queue.
    pub(crate) workers: usize,
    pub(crate) jobs: u64,
    /// Bytes of each job, about.
    pub(crate) payload: usize,
    /// Jobs a second, where they come at a steady rate.
    pub(crate) per_second: Option<u32>,
    pub(crate) contestants: Vec<Contestant>,
    /// How many rounds it gets.
    pub(crate) rounds: usize,
}

/// One figure of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    JobsPerSecond,
    Seconds,
    StartMs,
    P50Ms,
    P90Ms,
    P99Ms,
    P999Ms,
    MaxMs,
    ResidentMb,
    PeakMb,
    LeastShare,
    PeakBacklog,
    CpuMicros,
    Instructions,
    BrokerMicros,
    PaceLateMs,
    Events,
}

impl Scenario {
    /// Those that the targets are about come first.
    pub(crate) const ALL: [Self; 17] = [
        Self::Drain,
        Self::PublishBulk,
        Self::Latency,
        Self::Idle,
        Self::Start,
        Self::PublishOne,
        Self::PublishWindowed,
        Self::DrainSleep,
        Self::DrainCpu,
        Self::DrainFailing,
        Self::Burst,
        Self::Workers,
        Self::MemoryBacklog,
        Self::MemoryPayload,
        Self::StartFresh,
        Self::DrainTracked,
        Self::PublishTracked,
    ];
    /// What `targets` stands for: all that a goal is about.
    pub(crate) const TARGETS: [Self; 5] =
        [Self::Drain, Self::PublishBulk, Self::Latency, Self::Idle, Self::Start];

    /// As it is asked for.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::PublishBulk => "publish-bulk",
            Self::Latency => "latency",
            Self::PublishOne => "publish-one",
            Self::PublishWindowed => "publish-windowed",
            Self::DrainSleep => "drain-sleep",
            Self::DrainCpu => "drain-cpu",
            Self::DrainFailing => "drain-failing",
            Self::Burst => "burst",
            Self::Workers => "workers",
            Self::MemoryBacklog => "memory-backlog",
            Self::MemoryPayload => "memory-payload",
            Self::Idle => "idle",
            Self::Start => "start",
            Self::StartFresh => "start-fresh",
            Self::DrainTracked => "drain-tracked",
            Self::PublishTracked => "publish-tracked",
        }
    }

    /// What is measured, in a sentence.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Drain => {
                "A full queue of jobs that do nothing is drained; from the first job to the last."
            }
            Self::PublishBulk => "`publish_all` with confirms, up to 1,000 jobs at once.",
            Self::Latency => {
                "Jobs come at a steady rate; from the moment each should have been sent to its \
                 handler. A job that was sent late counts from when it was due. All are published \
                 by one Forebay producer; the consumers differ."
            }
            Self::PublishOne => "Each `publish` is awaited before the next.",
            Self::PublishWindowed => "1,000 calls of `publish` at once.",
            Self::DrainSleep => "As drain; each job waits 1 ms without computing.",
            Self::DrainCpu => "As drain; each job computes for 1 ms of processor time.",
            Self::DrainFailing => {
                "As drain; every tenth job fails once. Forebay retries it after 100 ms by way of \
                 the delay ladder; the reference publishes a copy to the end of the queue, with a \
                 confirm, and acks."
            }
            Self::Burst => {
                "A worker waits at an empty queue, and all jobs, of 1 ms of processor time each, \
                 are published at once; from the first publish to the last job."
            }
            Self::Workers => {
                "As drain, by several processes on one queue. The share is what the process with \
                 the fewest jobs had of an even share."
            }
            Self::MemoryBacklog => "As drain; the most memory that was ever resident.",
            Self::MemoryPayload => {
                "The same with payloads of 10 MB, a prefetch of 4 and 2 at once."
            }
            Self::Idle => {
                "Memory of a worker that has waited for 3 s at an empty queue. The reference is \
                 the same program, whose own pages are counted too."
            }
            Self::Start => {
                "From the start of the process to the handler of a job that waits already."
            }
            Self::StartFresh => {
                "The same on a broker that has nothing of the namespace: the job is published, and \
                 queues and exchanges are declared, while the process starts."
            }
            Self::DrainTracked => {
                "As drain; beside it the same with jobs that are tracked: each tells that it was \
                 started and that it succeeded, and is acked when the latter is confirmed. That it \
                 was queued, the third event, was told before."
            }
            Self::PublishTracked => {
                "As publish-bulk; beside it the same with jobs that are tracked: each tells that it \
                 was queued, and counts when that is confirmed."
            }
        }
    }

    /// Forebay first, then the references.
    pub(crate) fn contestants(self) -> Vec<Contestant> {
        use Contestant::{
            BareAwaited, BareBatched, BareOneByOne, BareTasks, BareWindowed, Forebay, Tracked,
        };
        match self {
            Self::Drain => vec![Forebay, BareBatched, BareAwaited],
            Self::DrainTracked | Self::PublishTracked => vec![Forebay, Tracked],
            Self::PublishOne => vec![Forebay, BareOneByOne],
            Self::PublishBulk | Self::PublishWindowed => vec![Forebay, BareWindowed],
            Self::DrainSleep | Self::DrainCpu | Self::DrainFailing | Self::Burst => {
                vec![Forebay, BareTasks]
            }
            Self::MemoryPayload
            | Self::Latency
            | Self::Workers
            | Self::MemoryBacklog
            | Self::Idle
            | Self::Start
            | Self::StartFresh => vec![Forebay, BareBatched],
        }
    }

    /// How many jobs, of those that were asked for or are usual.
    pub(crate) fn jobs(self, jobs: u64) -> u64 {
        match self {
            Self::PublishOne => jobs / 20,
            Self::DrainCpu | Self::Burst => jobs / 10,
            Self::MemoryBacklog => jobs * 10,
            Self::MemoryPayload => jobs / 1_000,
            Self::Idle => 0,
            Self::Start | Self::StartFresh => 1,
            _ => jobs,
        }
        .max(u64::from(self != Self::Idle))
    }

    /// How often each job runs.
    pub(crate) fn runs(self, jobs: u64) -> u64 {
        match self {
            Self::DrainFailing => jobs + jobs.div_ceil(10),
            _ => jobs,
        }
    }

    pub(crate) fn rounds(self) -> usize {
        match self {
            // They take long and vary little.
            Self::MemoryBacklog | Self::MemoryPayload | Self::Idle => 5,
            _ => 15,
        }
    }

    pub(crate) fn work(self, warm_up: u64) -> Work {
        match self {
            Self::DrainSleep => Work::Sleep,
            Self::DrainCpu | Self::Burst => Work::Compute,
            Self::DrainFailing => Work::FailTenth,
            Self::Latency => Work::Latency { warm_up },
            _ => Work::Nothing,
        }
    }

    pub(crate) fn how(self) -> Option<How> {
        match self {
            Self::PublishOne => Some(How::OneByOne),
            Self::PublishWindowed => Some(How::Windowed),
            Self::PublishBulk | Self::PublishTracked => Some(How::Bulk),
            _ => None,
        }
    }

    /// What it is about.
    pub(crate) fn main_figure(self) -> Figure {
        match self {
            Self::Latency => Figure::P99Ms,
            Self::Burst => Figure::Seconds,
            Self::MemoryBacklog | Self::MemoryPayload => Figure::PeakMb,
            Self::Idle => Figure::ResidentMb,
            Self::Start | Self::StartFresh => Figure::StartMs,
            _ => Figure::JobsPerSecond,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scenario.name(), self.variant())
    }
}

impl Case {
    /// What tells it from other cases of its scenario: the queue, and settings that are not usual.
    pub(crate) fn variant(&self) -> String {
        let mut words = self.queue_type.to_string();
        if self.scenario == Scenario::Workers {
            words += &format!(" ×{}", self.workers);
        }
        if self.prefetch != PREFETCH {
            words += &format!(", prefetch {}", self.prefetch);
        }
        if self.concurrency != CONCURRENCY {
            words += &format!(", concurrency {}", self.concurrency);
        }
        words
    }
}

impl Figure {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::JobsPerSecond => "jobs/s",
            Self::Seconds => "seconds",
            Self::StartMs => "first job ms",
            Self::P50Ms => "p50 ms",
            Self::P90Ms => "p90 ms",
            Self::P99Ms => "p99 ms",
            Self::P999Ms => "p99.9 ms",
            Self::MaxMs => "max ms",
            Self::ResidentMb => "resident MB",
            Self::PeakMb => "peak MB",
            Self::LeastShare => "least share",
            Self::PeakBacklog => "peak backlog",
            Self::CpuMicros => "CPU µs/job",
            Self::Instructions => "instructions/job",
            Self::BrokerMicros => "broker CPU µs/job",
            Self::PaceLateMs => "pace late ms",
            Self::Events => "events/job",
        }
    }

    /// Of times, memory and costs less is.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::JobsPerSecond | Self::LeastShare)
    }

    /// Digits behind the point.
    pub(crate) fn digits(self) -> usize {
        match self {
            Self::JobsPerSecond | Self::PeakBacklog | Self::Instructions => 0,
            Self::P50Ms
            | Self::P90Ms
            | Self::P99Ms
            | Self::P999Ms
            | Self::MaxMs
            | Self::PaceLateMs
            | Self::Seconds
            | Self::LeastShare => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_begins_with_forebay() {
        let mut names: Vec<_> = Scenario::ALL.iter().map(|one| one.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Scenario::ALL.len());
        for scenario in Scenario::ALL {
            assert_eq!(serde_json::to_value(scenario).unwrap(), scenario.name());
            assert_eq!(scenario.contestants()[0], Contestant::Forebay);
            assert!(scenario.contestants().len() > 1, "{scenario:?} has nothing to compare with");
        }
    }

    #[test]
    fn no_scenario_is_left_without_a_job() {
        for scenario in Scenario::ALL {
            assert_eq!(scenario.jobs(1) == 0, scenario == Scenario::Idle, "{scenario:?}");
        }
        assert_eq!(Scenario::DrainFailing.runs(25), 28);
    }
}
