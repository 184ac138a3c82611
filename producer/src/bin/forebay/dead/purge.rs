//! `forebay dead purge`: removes dead letters for good.
//! In: piles and a filter, and a yes. Out: they are gone.

use clap::Args;
use forebay_producer::DeadLetters;
use serde_json::json;

use super::{Sight, Where, Which, confirm, count, ls, matching};
use crate::exit::Exit;
use crate::globals::Session;
use crate::screen;

/// Remove dead letters for good
#[derive(Args)]
#[command(after_help = "\
Examples:
  forebay dead purge --queue mail --older-than 30days --dry-run
  forebay dead purge --queue mail --older-than 30days
  forebay dead purge --id order-4711 --yes

Keep a copy before: forebay dead export --to-file dead.jsonl")]
pub(crate) struct Purge {
    #[command(flatten)]
    place: Where,
    /// Only show which ones
    #[arg(long)]
    dry_run: bool,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    // Last: its heading holds for everything behind it.
    #[command(flatten)]
    which: Which,
}

pub(super) async fn run(verb: &Purge, session: &Session) -> anyhow::Result<Exit> {
    let piles = verb.place.piles(session).await?;
    let (letters, filter) = (DeadLetters::new(&session.config), verb.which.filter());
    let sights = piles.look(&letters, &filter, session).await?;
    if verb.dry_run {
        letters.close().await;
        return dry_run(&sights, session);
    }
    let mut purged = 0;
    if matching(&sights) > 0 {
        confirm(verb.yes, "purge", matching(&sights))?;
        for sight in sights.iter().filter(|sight| sight.matching() > 0) {
            purged += letters.purge(&sight.pile, &filter, piles.limit).await?.done;
        }
    }
    letters.close().await;
    if session.for_people() {
        screen::say(format_args!("{} removed", count(purged)))?;
    } else {
        screen::say_json(&json!({ "purged": purged }))?;
    }
    sights.iter().for_each(Sight::tell_the_rest);
    Ok(Exit::Fine)
}

fn dry_run(sights: &[Sight], session: &Session) -> anyhow::Result<Exit> {
    if session.for_people() {
        ls::table(sights)?;
        screen::say(format_args!(
            "{} would be removed; nothing was done",
            count(matching(sights))
        ))?;
        sights.iter().for_each(Sight::tell_the_rest);
    } else {
        screen::say_json(&ls::as_json(sights))?;
    }
    Ok(Exit::Fine)
}
