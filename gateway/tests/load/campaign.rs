//! One load after the other.
//! In: `FOREBAY_LOAD_…` variables, or none. Out: tables; failed if a client did not get what it
//! should.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use forebay_producer::link::greeting::greetings;
use forebay_producer::testing::broker;

use super::live;
use super::replay;
use super::report::Report;

const ROOMS: &str = "Each client is alone in its room";
const CROWD: &str = "All clients are in one room";
const RETURN: &str = "All clients connect at once, each with the token of the first event of its \
                      room, and each has missed other events";
const RETURN_TO_ONE: &str = "The same, and all have missed the same events";

/// How large the loads are.
struct Sizes {
    idle: (usize, Duration),
    live: [live::Load; 2],
    replay: [replay::Load; 2],
}

fn live(
    (rooms, clients, rate): (usize, usize, u32),
    (name, what): (&'static str, &'static str),
    seconds: u64,
) -> live::Load {
    live::Load { name, what, rooms, clients, rate, during: Duration::from_secs(seconds) }
}

impl Sizes {
    fn short() -> Self {
        let back = |name, what, rooms| replay::Load { name, what, clients: 50, rooms, missed: 200 };
        Self {
            idle: (200, Duration::from_secs(1)),
            live: [live((20, 1, 5), ("rooms", ROOMS), 3), live((1, 50, 20), ("crowd", CROWD), 3)],
            replay: [back("return", RETURN, 50), back("return-to-one", RETURN_TO_ONE, 1)],
        }
    }

    fn full() -> Self {
        let back =
            |name, what, rooms| replay::Load { name, what, clients: 1_000, rooms, missed: 1_000 };
        Self {
            idle: (5_000, Duration::from_secs(60)),
            live: [
                live((1_000, 1, 2), ("rooms", ROOMS), 30),
                live((1, 200, 20), ("crowd", CROWD), 30),
            ],
            replay: [back("return", RETURN, 1_000), back("return-to-one", RETURN_TO_ONE, 1)],
        }
    }

    /// Those with `only` in their names.
    async fn measure(&self, only: &str) -> Vec<Report> {
        let mut reports = Vec::new();
        let mut done = |report: Report| {
            println!("{}", report.section());
            reports.push(report);
        };
        if "idle".contains(only) {
            done(super::idle::measure(self.idle.0, self.idle.1).await);
        }
        for load in self.live.into_iter().filter(|load| load.name.contains(only)) {
            done(load.measure().await);
        }
        for load in self.replay.into_iter().filter(|load| load.name.contains(only)) {
            done(load.measure().await);
        }
        reports
    }
}

fn judge(reports: &[Report]) {
    let faults: Vec<_> = reports.iter().flat_map(|report| &report.faults).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_that_hear_nothing_are_still_there() {
    judge(&Sizes::short().measure("idle").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_in_rooms_of_their_own_get_each_event_once_and_in_order() {
    judge(&Sizes::short().measure("rooms").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_in_one_room_get_each_event_once_and_in_order() {
    judge(&Sizes::short().measure("crowd").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_that_come_back_at_once_get_what_they_missed_once_and_in_order() {
    judge(&Sizes::short().measure("return").await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes and the machine for itself: docker/load.sh"]
async fn figures() {
    let variable = |name: &str| std::env::var(format!("FOREBAY_LOAD_{name}")).unwrap_or_default();
    let before = load();
    let sizes = if variable("SHORT").is_empty() { Sizes::full() } else { Sizes::short() };
    let reports = sizes.measure(&variable("ONLY")).await;
    assert!(!reports.is_empty(), "there is no such load: {}", variable("ONLY"));
    judge(&reports);
    let file = variable("WRITE");
    if !file.is_empty() {
        write(Path::new(&file), &(circumstances(&before).await + &sections(&reports)));
    }
}

fn sections(reports: &[Report]) -> String {
    let sections: Vec<_> = reports.iter().map(Report::section).collect();
    sections.join("\n")
}

const BEGIN: &str =
    "<!-- Made by `docker/load.sh --write`; what is written here by hand is lost. -->";
const END: &str = "<!-- End of what `docker/load.sh --write` makes. -->";

/// Puts it where the last one was; what else is in the file stays.
fn write(file: &Path, made: &str) {
    let before = fs::read_to_string(file).unwrap();
    let place = before.find(BEGIN).zip(before.find(END));
    let (from, to) = place.unwrap_or_else(|| panic!("no place for it in {}", file.display()));
    let (head, tail) = (&before[..from], &before[to + END.len()..]);
    fs::write(file, format!("{head}{BEGIN}\n\n{}\n\n{END}{tail}", made.trim())).unwrap();
}

/// What a reader needs to judge the figures.
async fn circumstances(before: &str) -> String {
    let site = broker().await;
    let heard = greetings(&site.config(), Duration::from_secs(5)).await;
    let product = heard.into_iter().find_map(|(_, greeting)| greeting.ok());
    let product = product.map(|one| format!("{} {}", one.product, one.version)).unwrap_or_default();
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    let rows = [
        ("commit", said("git", &["describe", "--always", "--dirty"])),
        ("broker", product),
        ("compiler", said("rustc", &["--version"])),
        ("machine", format!("{}, {cores} threads", processor())),
        ("load average before and after", format!("{before} and {}", load())),
        ("ended", now.to_string()),
    ];
    let rows: String = rows.map(|(what, value)| format!("| {what} | {value} |\n")).concat();
    format!("|  |  |\n| --- | --- |\n{rows}\n")
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned()).unwrap_or_default()
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": "))
        .map_or_else(String::new, |(_, name)| name.to_owned())
}
