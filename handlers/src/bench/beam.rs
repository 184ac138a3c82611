//! The broker's own process, where it runs on this machine.
//! In: /proc, the name that the broker gives itself. Out: the CPU time it has taken, or why that
//! cannot be told.

use std::fs;
use std::path::{Path, PathBuf};

use forebay_worker::Config;
use rustix::param::clock_ticks_per_second;

use crate::operation::process::parse_stat;

/// A broker's process.
#[derive(Debug)]
pub(crate) struct Beam {
    stat: PathBuf,
}

impl Beam {
    /// Looks for the process of the broker with this cluster name, `rabbit@host` unless an operator
    /// has changed it.
    ///
    /// # Errors
    /// Why it cannot be had, to be shown.
    pub(crate) fn find(config: &Config, cluster: &str) -> Result<Self, String> {
        if !is_local(&config.broker()) {
            return Err("it is on another machine".to_owned());
        }
        let found: Vec<PathBuf> = processes();
        match &found[..] {
            [] => Err("no beam.smp is to be seen here".to_owned()),
            [one] => Ok(Self { stat: one.join("stat") }),
            several => {
                let mut ours = several.iter().filter(|folder| belongs(folder, cluster));
                match (ours.next(), ours.next()) {
                    (Some(one), None) => Ok(Self { stat: one.join("stat") }),
                    _ => Err(format!(
                        "{} beam.smp run here, and which of them is `{cluster}` cannot be told",
                        several.len()
                    )),
                }
            }
        }
        .and_then(|beam| match beam.cpu_us() {
            Some(_) => Ok(beam),
            None => Err("its /proc/PID/stat cannot be read".to_owned()),
        })
    }

    /// CPU time since its start, in microseconds; the kernel counts in steps of 10 ms.
    pub(crate) fn cpu_us(&self) -> Option<f64> {
        let stat = parse_stat(&fs::read_to_string(&self.stat).ok()?)?;
        Some(stat.cpu_ticks as f64 * 1_000_000.0 / clock_ticks_per_second() as f64)
    }
}

fn is_local(broker: &str) -> bool {
    let local = |host: &str| {
        ["127.", "localhost", "[::1]", "::1"].iter().any(|start| host.trim().starts_with(start))
    };
    broker.split(',').all(local)
}

fn processes() -> Vec<PathBuf> {
    let folders = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let is_broker = |folder: &PathBuf| {
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        name.trim() == "beam.smp" && read(&folder.join("cmdline")).contains("rabbit")
    };
    folders.filter(is_broker).collect()
}

/// Whether the process says of itself that it is `rabbit@host`, or lives on such a host.
fn belongs(folder: &Path, cluster: &str) -> bool {
    let host = cluster.split_once('@').map_or(cluster, |(_, host)| host);
    let environment = read(&folder.join("environ"));
    let set = |line: &str| line == format!("HOSTNAME={host}") || line.ends_with(cluster);
    environment.split('\0').any(set)
        || read(&folder.join("cmdline")).split('\0').any(|word| word == cluster)
        || read(&folder.join("root/etc/hostname")).trim() == host
}

fn read(file: &Path) -> String {
    fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_local() {
        for (broker, local) in [
            ("127.0.0.1:5672", true),
            ("localhost:5672", true),
            ("[::1]:5672", true),
            ("rabbit.example.org:5672", false),
            ("127.0.0.1:5672,rabbit-2:5672", false),
        ] {
            assert_eq!(is_local(broker), local, "{broker}");
        }
    }
}
