//! One long-lived program of the manifest: `[servers.NAME]`, or `serve` of a function.
//! In: its table. Out: [`ServerSettings`]: what is started, how often, for how many jobs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Manifest;
use super::fault::{Report, suggestion};
use super::function::{Program, Runs, read_program};
use super::section::{Section, as_key};
use super::units;
use crate::serve::ServerOptions;

/// A long-lived program.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ServerSettings {
    /// The program, then its arguments.
    pub command: Vec<String>,
    /// Variables of its environment.
    pub env: BTreeMap<String, String>,
    /// Variables it takes over from the worker.
    pub pass_env: Vec<String>,
    /// The folder it runs in.
    pub cwd: PathBuf,
    /// How many processes there are.
    pub processes: Option<usize>,
    /// How many jobs one process has at once.
    pub jobs_per_process: Option<usize>,
    /// After how many jobs a process is replaced.
    pub max_jobs: Option<u64>,
    /// How long a process may take until it is ready.
    pub start_timeout: Option<Duration>,
    /// Its line in the manifest.
    pub line: usize,
}

impl ServerSettings {
    /// The options for the server.
    pub fn options(&self) -> ServerOptions {
        let mut options = ServerOptions::new();
        if let Some(processes) = self.processes {
            options = options.processes(processes);
        }
        if let Some(jobs) = self.jobs_per_process {
            options = options.jobs_per_process(jobs);
        }
        if let Some(jobs) = self.max_jobs {
            options = options.max_jobs(jobs);
        }
        if let Some(limit) = self.start_timeout {
            options = options.start_timeout(limit);
        }
        options
    }
}

/// Reads `[servers.NAME]`; `None` when it does not say what is started.
pub(super) fn read(mut section: Section<'_, '_>, folder: &Path) -> Option<ServerSettings> {
    if !section.has("serve") {
        section.fault(
            format!("{} does not say what is started", section.name),
            r#"add serve = ["program", "argument"]"#,
        );
    }
    let settings = read_settings(&mut section, folder);
    section.finish();
    settings
}

/// The keys of a long-lived program, which may stand beside those of a function.
pub(super) fn read_settings(
    section: &mut Section<'_, '_>,
    folder: &Path,
) -> Option<ServerSettings> {
    let line = section.report.line(&section.at);
    let processes = section.get("processes", |value| units::number(value, 1..=1_000));
    let jobs = section.get("jobs_per_process", |value| units::number(value, 1..=10_000));
    let max_jobs = section.get("max_jobs", |value| units::number(value, 1..=1_000_000_000));
    let start_timeout = section.get("start_timeout", units::duration);
    let Program { command, env, pass_env, cwd } = read_program("serve", section, folder)?;
    Some(ServerSettings {
        command,
        env,
        pass_env,
        cwd,
        processes: processes.and_then(|most| usize::try_from(most).ok()),
        jobs_per_process: jobs.and_then(|most| usize::try_from(most).ok()),
        max_jobs,
        start_timeout,
        line,
    })
}

/// Every function's server must be there.
pub(super) fn check_servers(manifest: &Manifest, report: &Report<'_>) {
    for (kind, function) in &manifest.functions {
        let Runs::Server { name } = &function.runs else { continue };
        if manifest.servers.contains_key(name) {
            continue;
        }
        let section = format!("[servers.{}]", as_key(name));
        let remedy = match suggestion(name, manifest.servers.keys().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`? If not, add {section}"),
            None => format!(r#"add {section} and below it serve = ["program", "argument"]"#),
        };
        let what = format!("server `{name}` of function `{kind}` is not configured");
        report.add(function.at.clone(), what, remedy);
    }
}
