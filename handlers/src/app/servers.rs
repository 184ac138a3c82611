//! The long-lived programs of a manifest.
//! In: a manifest. Out: one [`Server`] for each program that a function uses, or what is missing.

use std::collections::BTreeMap;

use super::fault;
use super::prepare::{Missing, program, program_remedy};
use crate::manifest::{Fault, Function, Manifest, Runs, ServerSettings};
use crate::serve::Server;

/// The servers that functions use.
#[derive(Debug, Default)]
pub(super) struct Servers {
    pub(super) all: Vec<Server>,
    /// Of `[servers.NAME]`.
    named: BTreeMap<String, Server>,
    /// Of functions, by kind.
    own: BTreeMap<String, Server>,
}

impl Servers {
    /// Prepares them all; what this machine lacks is a fault each.
    pub(super) fn prepare(manifest: &Manifest) -> (Self, Vec<Fault>) {
        let (mut servers, mut faults) = (Self::default(), Vec::new());
        let mut prepare = |name: &str, settings: &ServerSettings| match ready(name, settings) {
            Ok(server) => {
                servers.all.push(server.clone());
                Some(server)
            }
            Err((what, remedy)) => {
                let what = format!("server `{name}`: {what}");
                faults.push(fault(manifest, Some(settings.line), what, remedy));
                None
            }
        };
        for (name, settings) in &manifest.servers {
            if is_used(name, manifest)
                && let Some(server) = prepare(name, settings)
            {
                servers.named.insert(name.clone(), server);
            }
        }
        for (kind, function) in &manifest.functions {
            if let Runs::Serve(settings) = &function.runs
                && let Some(server) = prepare(kind, settings)
            {
                servers.own.insert(kind.clone(), server);
            }
        }
        (servers, faults)
    }

    /// The one that runs a function.
    pub(super) fn of(&self, kind: &str, function: &Function) -> Option<Server> {
        match &function.runs {
            Runs::Server { name } => self.named.get(name).cloned(),
            Runs::Serve(_) => self.own.get(kind).cloned(),
            _ => None,
        }
    }
}

/// How many jobs the server of a function has at once. So many runs of it go on at once, unless it
/// says otherwise: a job that waits for its handler's turn does not use up its timeout.
pub(super) fn places(function: &Function, manifest: &Manifest) -> Option<usize> {
    let settings = match &function.runs {
        Runs::Server { name } => manifest.servers.get(name)?,
        Runs::Serve(settings) => settings,
        _ => return None,
    };
    let one = settings.jobs_per_process.unwrap_or(1);
    Some(settings.processes.unwrap_or(1).saturating_mul(one))
}

fn is_used(name: &str, manifest: &Manifest) -> bool {
    let mut functions = manifest.functions.values();
    functions.any(|function| matches!(&function.runs, Runs::Server { name: used } if used == name))
}

fn ready(name: &str, settings: &ServerSettings) -> Result<Server, Missing> {
    let ServerSettings { command, env, pass_env, cwd, .. } = settings;
    let server = Server::new(name, program(command, env, pass_env, cwd), settings.options());
    match server.check() {
        Ok(()) => Ok(server),
        Err(missing) => Err((missing.to_string(), program_remedy(&missing))),
    }
}
