//! `forebay delays`: look at the delay ladder.
//! In: which verb. Out: one verb a file; `ladder` decides what is wrong with a level.

mod ladder;
mod ls;

use clap::{Args, Subcommand};

use crate::exit::Exit;
use crate::globals::{Globals, Session};

/// Look at the levels of the delay ladder
#[derive(Args)]
#[command(after_help = "\
Examples:
  forebay delays ls
  forebay delays ls --output json | jq '.levels[] | select(.state != \"ok\")'")]
pub(crate) struct Delays {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Ls(ls::Ls),
}

pub(crate) async fn run(
    verb: &Delays,
    session: &Session,
    globals: &Globals,
) -> anyhow::Result<Exit> {
    match &verb.verb {
        Verb::Ls(_) => ls::run(session, globals).await,
    }
}
