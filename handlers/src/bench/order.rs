//! What the measuring process and the one that it measures say to each other.
//! In: one line with an [`Order`], then the words `go` and `stop`. Out: one [`Event`] a line.

use forebay_worker::QueueType;
use serde::{Deserialize, Serialize};

/// Begin now.
pub(crate) const GO: &str = "go";
/// Enough; end in good order.
pub(crate) const STOP: &str = "stop";

/// Everything that a measured process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) contestant: Contestant,
    pub(crate) task: Task,
    pub(crate) queue_type: QueueType,
    pub(crate) prefetch: u16,
    pub(crate) concurrency: usize,
    /// Bytes of a job, about.
    pub(crate) payload: usize,
}

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contestant {
    /// A worker or producer as `forebay-run` has it: retries, log at info, metrics kept.
    Forebay,
    /// The same, and every job asks for its events.
    Tracked,
    /// lapin: what is there is taken, then acked with one frame.
    BareBatched,
    /// lapin: each delivery is acked, and that awaited, before the next.
    BareAwaited,
    /// lapin: a task for each delivery, which acks it; as many at once as `concurrency`.
    BareTasks,
    /// lapin: up to 1,000 publishes wait for their confirms at once.
    BareWindowed,
    /// lapin: each publish waits for its confirm before the next.
    BareOneByOne,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    /// Take jobs until told to stop.
    Consume(Work),
    /// Publish so many jobs with confirms.
    Publish { how: How, jobs: u64 },
    /// Publish so many jobs, each at its time, whatever became of those before.
    Pace { jobs: u64, per_second: u32 },
}

/// What a handler does with one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Work {
    Nothing,
    /// Waits a millisecond.
    Sleep,
    /// Computes for a millisecond.
    Compute,
    /// Every tenth job fails once and is tried again.
    FailTenth,
    /// Notes how long ago the job should have been sent; the first jobs are not noted.
    Latency {
        warm_up: u64,
    },
}

/// How jobs are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum How {
    OneByOne,
    /// Many calls of `publish` at once.
    Windowed,
    /// `publish_all`.
    Bulk,
}

/// What a measured process says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// It has its order and waits for the word.
    Up,
    /// It consumes, or may publish.
    Working,
    /// So many jobs up to now.
    Handled(u64),
    /// It has ended in good order.
    Done(Account),
    /// It could not do it.
    Failed(String),
}

/// What a measured process took. Times are the machine's monotonic clock in nanoseconds, which all
/// processes share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) handled: u64,
    /// When the first job was handled, or the first publish began.
    pub(crate) began: u64,
    /// When the last job was handled or confirmed.
    pub(crate) ended: u64,
    /// CPU time of the whole process from then until everything was settled and closed.
    pub(crate) cpu_ns: u64,
    /// Instructions in the same span, where the machine counts them.
    pub(crate) instructions: Option<u64>,
    /// The most memory that was resident at any time, in bytes.
    pub(crate) peak: Option<u64>,
    /// Resident memory when it was told to stop.
    pub(crate) resident: Option<u64>,
    /// Latencies in microseconds, each with how often it was seen.
    pub(crate) latencies: Vec<(u64, u64)>,
    /// By how many nanoseconds the pace was missed at most.
    pub(crate) late: u64,
}

impl Contestant {
    /// As tables and documents call it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Forebay => "Forebay",
            Self::Tracked => "Forebay, each job tracked",
            Self::BareBatched => "lapin, batched acks",
            Self::BareAwaited => "lapin, each ack awaited",
            Self::BareTasks => "lapin, a task per job",
            Self::BareWindowed => "lapin, windowed confirms",
            Self::BareOneByOne => "lapin, each confirm awaited",
        }
    }
}
