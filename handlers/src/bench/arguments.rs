//! The command line of `forebay bench`.
//! In: arguments. Out: cases to measure, or what is wrong with them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use forebay_worker::QueueType;

use super::order::Contestant;
use super::scenario::{CONCURRENCY, Case, PREFETCH, Scenario};
use crate::arguments::Declares;

const EXAMPLES: &str = "\
Examples:
  forebay bench --queue-type quorum --rounds 6 --jobs 5000 --during 1s
                                                   a first look, in about 2 minutes
  forebay bench                                    the targets, beside bare lapin
  forebay bench --write docs/benchmarks.md         the same, as a page with plots
  forebay bench --scenario all --time-limit 2h     everything
  forebay bench --scenario drain --queue-type quorum --prefetch 100,1000
  forebay bench --scenario memory-backlog --jobs 1000000 --rounds 1
  forebay bench --output json > run.json           everything that was measured
  forebay bench --from run.json --write docs/benchmarks.md
                                                   tables and plots of an earlier run

Scenarios:
  drain             a full queue of jobs that do nothing (target)
  publish-bulk      publish_all with confirms (target)
  latency           end to end at a steady rate, p50 to p99.9 (target)
  idle              memory of a waiting worker (target)
  start             process start to first job (target)
  publish-one       each publish awaited        publish-windowed   1,000 at once
  drain-sleep       jobs that wait 1 ms         drain-cpu          jobs that compute 1 ms
  drain-failing     every tenth job fails once  burst              all at once onto a waiting worker
  workers           1, 2 and 4 processes        memory-backlog     peak with a long queue
  memory-payload    peak with 10 MB payloads    start-fresh        as start, on an empty broker
  drain-tracked     jobs that tell their events publish-tracked    the same, published
  targets: those marked so; all: every one

How it measures: each contestant runs in a process of its own; a round holds one run of each, in
alternating order, and what is printed is the median of the rounds' ratios with a 95 % interval
(bootstrap). A target is met when the better end of the interval reaches it; fewer than 6 rounds
decide nothing. It needs a quiet machine, and a namespace of its own on the broker,
NAMESPACE-bench-XXXXXXXX, which it removes in the end, also after Ctrl-C.

Exit codes:
  0  measured, whatever the figures are
  1  a run failed, or it was interrupted; what was measured until then is printed
  2  wrong arguments
  3  the broker is out of reach, or refuses us";

const DURING: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(600);
const WORKERS: [u64; 3] = [1, 2, 4];

/// Measures Forebay on this machine and broker, beside the bare client library.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) target: Target,

    /// With whom each figure is compared, in the same run.
    #[arg(long, value_name = "WITH", value_enum, default_value_t = Compare::Bare)]
    pub(crate) compare: Compare,

    /// What to measure: names below, separated by commas.
    #[arg(short, long, value_name = "NAME", value_delimiter = ',', default_value = "targets",
          value_parser = scenarios)]
    scenario: Vec<Scenarios>,

    /// Rounds of each scenario. Default: 15; 5 for idle and memory-….
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000))]
    rounds: Option<u64>,

    /// Jobs of a run. Default: 20,000; some scenarios take a fixed part of it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    jobs: Option<u64>,

    /// How the broker keeps the queue.
    #[arg(long, value_name = "TYPE", value_delimiter = ',', default_value = "quorum,classic",
          value_parser = queue_type)]
    queue_type: Vec<QueueType>,

    /// Deliveries that the broker hands out ahead; several settings are measured one beside the other.
    #[arg(long, value_name = "N", value_delimiter = ',',
          default_values_t = [PREFETCH], value_parser = clap::value_parser!(u16).range(1..))]
    prefetch: Vec<u16>,

    /// Jobs that run at once in a worker; several settings likewise.
    #[arg(long, value_name = "N", value_delimiter = ',',
          default_values_t = [CONCURRENCY as u64],
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    concurrency: Vec<u64>,

    /// Size of a job, about, in bytes. Default: 200.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(60..=16_000_000))]
    payload: Option<u64>,

    /// Jobs a second of `latency`.
    #[arg(long, value_name = "N", default_value_t = 1_000,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,

    /// Length of a run of `latency`.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = during)]
    during: Duration,

    /// Processes of `workers`.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = WORKERS,
          value_parser = clap::value_parser!(u64).range(1..=64))]
    workers: Vec<u64>,

    /// Ends after this time, with the rounds that were done.
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = duration)]
    pub(crate) time_limit: Duration,

    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,

    /// Measures nothing; shows what a run with `--output json` has printed. Several runs of one
    /// version on one machine and broker are shown as one.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = [
        "compare", "scenario", "rounds", "jobs", "queue_type", "prefetch", "concurrency",
        "payload", "rate", "during", "workers", "time_limit",
    ])]
    pub(crate) from: Vec<PathBuf>,

    /// Writes tables as Markdown, and plots beside it, once it has measured. What else is in the
    /// file stays.
    #[arg(long, value_name = "FILE.md")]
    pub(crate) write: Option<PathBuf>,

    /// Prints the manual page.
    #[arg(long)]
    pub(crate) man: bool,
}

/// Which broker.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// The manifest, whose [broker] counts if it is there.
    #[arg(short, long, value_name = "FILE", default_value = "forebay.toml")]
    pub(crate) config: PathBuf,

    /// Where the broker is: amqp://user:password@host:5672/vhost.
    #[arg(long, value_name = "URL", env = "AMQP_URL", hide_env_values = true)]
    pub(crate) url: Option<String>,

    /// First part of every name on the broker.
    #[arg(long, value_name = "NAME", env = "FOREBAY_NAMESPACE")]
    pub(crate) namespace: Option<String>,

    /// What may be declared on the broker; a benchmark cannot do without.
    #[arg(long, value_name = "WHAT", env = "FOREBAY_DECLARE")]
    pub(crate) declare: Option<Declares>,
}

/// What runs beside Forebay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compare {
    /// The client library lapin alone.
    Bare,
    /// Nobody: no ratios.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// What one name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scenarios(Vec<Scenario>);

fn scenarios(name: &str) -> Result<Scenarios, String> {
    let found = match name {
        "all" => Scenario::ALL.to_vec(),
        "targets" => Scenario::TARGETS.to_vec(),
        name => Scenario::ALL.into_iter().filter(|one| one.name() == name).collect(),
    };
    if found.is_empty() {
        let names = Scenario::ALL.map(Scenario::name).join(", ");
        return Err(format!("there is no such scenario; use targets, all, or of: {names}"));
    }
    Ok(Scenarios(found))
}

fn queue_type(name: &str) -> Result<QueueType, String> {
    match name {
        "quorum" => Ok(QueueType::Quorum),
        "classic" => Ok(QueueType::Classic),
        _ => Err("write quorum, classic, or both".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 30s, 20m or 2h"))
}

fn during(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        long if (SHORTEST..=LONGEST).contains(&long) => Ok(long),
        _ => Err("a run takes from 100ms to 10m".to_owned()),
    }
}

impl Arguments {
    /// The scenarios, each once, in the order in which they are shown.
    fn chosen(&self) -> Vec<Scenario> {
        let asked = |one: &Scenario| self.scenario.iter().any(|some| some.0.contains(one));
        Scenario::ALL.into_iter().filter(asked).collect()
    }

    /// Everything to measure.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for scenario in self.chosen() {
            for &queue_type in &self.queue_type {
                for &prefetch in &self.prefetch {
                    for &concurrency in &self.concurrency {
                        for workers in self.workers_of(scenario) {
                            let case = self.case(scenario, queue_type, workers);
                            let case = settle(case, prefetch, concurrency as usize);
                            // What a scenario fixes makes equal cases of different settings.
                            if !cases.contains(&case) {
                                cases.push(case);
                            }
                        }
                    }
                }
            }
        }
        cases
    }

    fn workers_of(&self, scenario: Scenario) -> Vec<usize> {
        match scenario {
            Scenario::Workers => self.workers.iter().map(|&count| count as usize).collect(),
            _ => vec![1],
        }
    }

    fn case(&self, scenario: Scenario, queue_type: QueueType, workers: usize) -> Case {
        let contestants = match self.compare {
            Compare::Bare => scenario.contestants(),
            Compare::None => vec![Contestant::Forebay],
        };
        let jobs = match (scenario, self.jobs) {
            (Scenario::Latency, _) => {
                (f64::from(self.rate) * self.during.as_secs_f64()).ceil().max(10.0) as u64
            }
            (Scenario::MemoryBacklog, Some(jobs)) => jobs,
            (scenario, jobs) => scenario.jobs(jobs.unwrap_or(20_000)),
        };
        Case {
            scenario,
            queue_type,
            prefetch: 0,
            concurrency: 0,
            workers,
            jobs,
            payload: self.payload.unwrap_or(200) as usize,
            per_second: (scenario == Scenario::Latency).then_some(self.rate),
            contestants,
            rounds: self.rounds.map_or(scenario.rounds(), |rounds| rounds as usize),
        }
    }

    /// Settings that change nothing of what is measured.
    pub(crate) fn unused(&self) -> Vec<String> {
        let chosen = self.chosen();
        let mut notes = Vec::new();
        if self.rate != 1_000 && !chosen.contains(&Scenario::Latency) {
            notes.push("--rate is for scenario latency, which is not measured".to_owned());
        }
        if self.during != DURING && !chosen.contains(&Scenario::Latency) {
            notes.push("--during is for scenario latency, which is not measured".to_owned());
        }
        if self.workers != WORKERS && !chosen.contains(&Scenario::Workers) {
            notes.push("--workers is for scenario workers, which is not measured".to_owned());
        }
        if self.payload.is_some() && chosen == [Scenario::MemoryPayload] {
            notes.push("--payload is not used: memory-payload has payloads of 10 MB".to_owned());
        }
        if self.jobs.is_some() && chosen == [Scenario::Latency] {
            notes.push("--jobs is not used: latency takes --rate and --during".to_owned());
        }
        let few = self.rounds.is_some_and(|rounds| rounds < 15);
        if few && self.compare == Compare::Bare {
            notes.push("fewer than 15 rounds: the intervals are wide or mean little".to_owned());
        }
        notes
    }
}

/// What a scenario fixes.
fn settle(case: Case, prefetch: u16, concurrency: usize) -> Case {
    match case.scenario {
        Scenario::MemoryPayload => {
            Case { prefetch: 4, concurrency: 2, payload: 10_000_000, ..case }
        }
        _ => Case { prefetch, concurrency, ..case },
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(line: &str) -> Arguments {
        Line::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}")).arguments
    }

    #[test]
    fn without_arguments_the_targets_are_measured_on_both_types_of_queue() {
        let cases = parse("bench").cases();
        let names: Vec<_> = cases.iter().map(ToString::to_string).collect();
        let expected = [
            "drain quorum",
            "drain classic",
            "publish-bulk quorum",
            "publish-bulk classic",
            "latency quorum",
            "latency classic",
            "idle quorum",
            "idle classic",
            "start quorum",
            "start classic",
        ];
        assert_eq!(names, expected);
        assert!(cases[..6].iter().all(|case| case.rounds == 15 && case.contestants.len() > 1));
        assert_eq!(cases[4].jobs, 5_000);
    }

    #[test]
    fn settings_multiply_except_where_a_scenario_fixes_them() {
        let line = "bench -s drain,workers,memory-payload --queue-type quorum --prefetch 10,100 \
                    --concurrency 1,8 --workers 2 --compare none";
        let cases = parse(line).cases();
        let of = |scenario| cases.iter().filter(|case| case.scenario == scenario).count();
        assert_eq!(of(Scenario::Drain), 4);
        assert_eq!(of(Scenario::Workers), 4);
        assert_eq!(of(Scenario::MemoryPayload), 1);
        assert!(cases.iter().all(|case| case.contestants == [Contestant::Forebay]));
    }

    #[test]
    fn what_changes_nothing_is_said() {
        let line = "bench -s drain --rate 10 --during 1s --workers 3 --rounds 3";
        let notes = parse(line).unused();
        assert_eq!(notes.len(), 4, "{notes:?}");
        assert!(parse("bench").unused().is_empty());
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_what_can() {
        for (line, words) in [
            ("bench -s drian", "targets, all, or of: drain, publish-bulk"),
            ("bench --queue-type stream", "quorum, classic"),
            ("bench --rounds 0", "1..=1000"),
            ("bench --payload 20000000", "16000000"),
            ("bench --during 5", "write it as 30s"),
            ("bench --during 1ms", "100ms to 10m"),
            ("bench --time-limit soon", "write it as 30s"),
            ("bench --from run.json --rounds 3", "cannot be used with"),
        ] {
            let error = Line::try_parse_from(line.split(' ')).err().unwrap().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
