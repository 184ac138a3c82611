//! What this process takes of its machine, under the names that Prometheus clients agree on.
//! In: /proc. Out: text for `/metrics`; nothing where there is no /proc.

use std::fmt::Write;
use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// The numbers of `/proc/self/stat` that are shown.
#[derive(Debug, PartialEq)]
pub(crate) struct Stat {
    /// User and system time.
    pub(crate) cpu_ticks: u64,
    threads: u64,
    /// Since boot.
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

/// The process's lines of a scrape.
pub(crate) fn numbers() -> String {
    let mut text = String::new();
    let ticks = clock_ticks_per_second() as f64;
    let mut add = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            // Writing to a string does not fail.
            _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| parse_stat(&text));
    if let Some(stat) = stat {
        let cpu = stat.cpu_ticks as f64 / ticks;
        add("process_cpu_seconds_total", "counter", "User and system CPU time.", Some(cpu));
        let resident = stat.resident_pages as f64 * page_size() as f64;
        add("process_resident_memory_bytes", "gauge", "Resident memory.", Some(resident));
        let virtual_bytes = stat.virtual_bytes as f64;
        add("process_virtual_memory_bytes", "gauge", "Virtual memory.", Some(virtual_bytes));
        add("process_threads", "gauge", "Threads.", Some(stat.threads as f64));
        let boot = fs::read_to_string("/proc/stat").ok().and_then(|text| parse_boot(&text));
        let start = boot.map(|boot| boot as f64 + stat.start_ticks as f64 / ticks);
        let help = "When the process began, in seconds since the epoch.";
        add("process_start_time_seconds", "gauge", help, start);
    }
    // The folder that is read is open itself.
    let open = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count().saturating_sub(1) as f64);
    add("process_open_fds", "gauge", "Open file descriptors.", open);
    let most = getrlimit(Resource::Nofile).current.map(|most| most as f64);
    add("process_max_fds", "gauge", "File descriptors that may be open.", most);
    text
}

/// See proc_pid_stat(5). The second field, the program's name, may hold anything.
pub(crate) fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Fields are counted from 1 there, and the third is the first here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        cpu_ticks: field(14)? + field(15)?,
        threads: field(20)?,
        start_ticks: field(22)?,
        virtual_bytes: field(23)?,
        resident_pages: field(24)?,
    })
}

/// When the machine was started, in seconds since the epoch.
fn parse_boot(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_name_does_not_move_the_fields() {
        let stat =
            "42 (a) b) S 1 42 42 0 -1 4194304 900 0 0 0 70 30 0 0 20 0 5 0 1234 9000 250 1 2";
        let expected = Stat {
            cpu_ticks: 100,
            threads: 5,
            start_ticks: 1234,
            virtual_bytes: 9000,
            resident_pages: 250,
        };
        assert_eq!(parse_stat(stat), Some(expected));
        for broken in
            ["", "42 (a", "42 (a) S 1", "42 (a) S 1 x x x x x x x x x x x x x x x x x x x x x"]
        {
            assert_eq!(parse_stat(broken), None, "{broken}");
        }
    }

    #[test]
    fn the_machine_s_start_is_found() {
        assert_eq!(parse_boot("cpu 1 2\nbtime 1700000000\nprocs 5\n"), Some(1_700_000_000));
        assert_eq!(parse_boot("cpu 1 2\n"), None);
    }

    #[test]
    fn this_process_has_numbers() {
        let text = numbers();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_start_time_seconds") > 1_000_000_000.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
    }
}
