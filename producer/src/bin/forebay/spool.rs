//! `forebay spool`, and what `forebay publish --spool` is made of: jobs that the broker could not
//! take lie in a folder until it can.
//! In: a folder. Out: one verb a file; this one knows what they share.

pub(crate) mod flush;
pub(crate) mod folder;
pub(crate) mod gate;
pub(crate) mod keeper;
pub(crate) mod ls;
pub(crate) mod record;
pub(crate) mod scan;
pub(crate) mod sender;
pub(crate) mod trouble;

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Args, Subcommand};

use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::screen;
use folder::Folder;
use sender::Sent;

/// Look at jobs that `publish --spool` has kept, and send them
#[derive(Args)]
#[command(after_help = "\
Examples:
  forebay publish email.send '{\"to\": \"ada@example.org\"}' --spool /var/spool/forebay
  forebay spool ls --spool /var/spool/forebay
  forebay spool flush --spool /var/spool/forebay

docs/spool.md tells what the folder holds and what is promised.")]
pub(crate) struct Spool {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Ls(ls::Ls),
    Flush(flush::Flush),
}

/// Which spool.
#[derive(Args)]
struct Place {
    /// The folder
    #[arg(long, env = "FOREBAY_SPOOL", hide_env_values = true, value_name = "DIR")]
    spool: Option<OsString>,
}

impl Place {
    fn folder(&self) -> Result<Folder, Stop> {
        let path = chosen(self.spool.as_deref()).ok_or_else(|| {
            Stop::Usage("which spool? Name its folder with --spool or FOREBAY_SPOOL".to_owned())
        })?;
        Folder::open(path)
    }
}

/// The folder that was named. An empty variable counts as none: compose files set such.
pub(crate) fn chosen(spool: Option<&OsStr>) -> Option<&Path> {
    spool.filter(|spool| !spool.is_empty()).map(Path::new)
}

pub(crate) async fn run(verb: Spool, session: &Session) -> anyhow::Result<Exit> {
    match verb.verb {
        Verb::Ls(verb) => ls::run(&verb, session),
        Verb::Flush(verb) => flush::run(&verb, session).await,
    }
}

/// The command that sends what lies there.
pub(crate) fn flush_command(folder: &Path) -> String {
    format!("forebay spool flush --spool {}", screen::quoted(&folder.display().to_string()))
}

/// Says why jobs are left that were not named one by one.
pub(crate) fn tell_the_rest(sent: &Sent, session: &Session) {
    if sent.foreign > 0 {
        let jobs = screen::count(sent.foreign, "job belongs", "jobs belong");
        let namespace = session.config.topology().namespace();
        screen::note(format_args!(
            "{jobs} to other namespaces than `{namespace}`: send them with --namespace (`forebay \
             spool ls` shows theirs)"
        ));
    }
    if sent.stopped.is_none() && !sent.stuck.is_empty() {
        let queues: Vec<_> = sent.stuck.iter().map(|queue| format!("`{queue}`")).collect();
        screen::note(format_args!(
            "{} {} no jobs now: later jobs for it were not tried, and stay in the spool",
            queues.join(", "),
            if queues.len() == 1 { "takes" } else { "take" }
        ));
    }
}
