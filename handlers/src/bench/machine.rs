//! Where it ran.
//! In: /proc. Out: what a reader needs to judge the figures; empty where there is no /proc.

use std::fs;
use std::thread;

use serde::{Deserialize, Serialize};

/// A machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The processor's model, as it calls itself.
    pub(crate) processor: String,
    /// Threads that can run at once.
    pub(crate) cores: usize,
    /// Memory in gigabytes.
    pub(crate) memory_gb: f64,
    pub(crate) system: String,
    /// Load averages over a minute, before and after.
    pub(crate) load: [Option<f64>; 2],
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        let release = read("/proc/sys/kernel/osrelease");
        Self {
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: thread::available_parallelism().map_or(0, Into::into),
            memory_gb: memory_gb(&read("/proc/meminfo")).unwrap_or(0.0),
            system: format!("{} {}", std::env::consts::OS, release.trim()).trim().to_owned(),
            load: [load(), None],
        }
    }
}

/// How many threads wanted to run, over the last minute.
pub(crate) fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

fn value(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_gb(meminfo: &str) -> Option<f64> {
    let kilobytes: f64 = value(meminfo, "MemTotal")?.split_whitespace().next()?.parse().ok()?;
    Some((kilobytes / 1024.0 / 102.4).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_from_what_the_kernel_says() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nmodel name\t: other\n";
        assert_eq!(value(text, "model name").as_deref(), Some("Some CPU @ 2.00GHz"));
        assert_eq!(memory_gb("MemTotal:       24636148 kB\n"), Some(23.5));
        assert_eq!(memory_gb(""), None);
        assert!(Machine::look().cores > 0);
    }
}
