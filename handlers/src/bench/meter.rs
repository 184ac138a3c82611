//! What this process takes of its machine.
//! In: the kernel's clocks, /proc, the processor's counters. Out: readings; `None` where a machine
//! does not tell.

use std::fs;

/// Taken twice, for the difference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) cpu_ns: u64,
    pub(crate) instructions: Option<u64>,
}

/// To be made before the process has a second thread: counters follow threads that begin later.
#[derive(Debug)]
pub(crate) struct Meter {
    counter: Counter,
}

impl Meter {
    pub(crate) fn begin() -> Self {
        Self { counter: Counter::begin() }
    }

    pub(crate) fn read(&self) -> Reading {
        Reading { cpu_ns: super::job::cpu(), instructions: self.counter.read() }
    }
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Counter(Option<std::sync::Mutex<perf_event::Counter>>);

#[cfg(target_os = "linux")]
impl Counter {
    /// Instructions of ours, not of the kernel on our behalf: those need a privilege.
    fn begin() -> Self {
        use perf_event::Builder;
        use perf_event::events::Hardware;

        let mut builder = Builder::new(Hardware::INSTRUCTIONS);
        builder.inherit(true).exclude_kernel(true).exclude_hv(true);
        let counter = builder.build().and_then(|mut counter| counter.enable().map(|()| counter));
        Self(counter.ok().map(std::sync::Mutex::new))
    }

    fn read(&self) -> Option<u64> {
        let mut counter = self.0.as_ref()?.lock().ok()?;
        counter.read().ok()
    }
}

#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
struct Counter;

#[cfg(not(target_os = "linux"))]
impl Counter {
    fn begin() -> Self {
        Self
    }

    fn read(&self) -> Option<u64> {
        None
    }
}

/// The most memory that was ever resident, in bytes.
pub(crate) fn peak() -> Option<u64> {
    bytes("VmHWM:")
}

/// Memory that is resident now, in bytes.
pub(crate) fn resident() -> Option<u64> {
    bytes("VmRSS:")
}

fn bytes(key: &str) -> Option<u64> {
    find(&fs::read_to_string("/proc/self/status").ok()?, key)
}

fn find(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_by_its_key() {
        let status = "Name:\tx\nVmHWM:\t   1234 kB\nVmRSS:\t    100 kB\n";
        assert_eq!(find(status, "VmHWM:"), Some(1_263_616));
        assert_eq!(find(status, "VmRSS:"), Some(102_400));
        assert_eq!(find(status, "VmSwap:"), None);
    }

    #[test]
    fn this_process_takes_memory_and_time() {
        assert!(peak() >= resident() && resident() > Some(100_000));
        let meter = Meter::begin();
        let first = meter.read();
        let spun = (0..200_000u64).fold(0, |sum, n| std::hint::black_box(sum ^ n));
        std::hint::black_box(spun);
        assert!(meter.read().cpu_ns > first.cpu_ns);
    }
}
