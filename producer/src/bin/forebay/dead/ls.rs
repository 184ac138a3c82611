//! `forebay dead ls`: a table of dead letters.
//! In: piles and a filter. Out: one line each; all of them are given back.

use clap::Args;
use forebay_producer::DeadLetters;
use forebay_producer::wire::envelope::now_ms;
use serde_json::{Value, json};

use super::letter;
use super::{Sight, Where, Which, matching, name};
use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::screen;

/// List dead letters, oldest first
#[derive(Args)]
#[command(after_help = "\
It takes nothing: every letter that was looked at goes back to its place.

Examples:
  forebay dead ls
  forebay dead ls --queue mail --kind email.send --newer-than 1h
  forebay dead ls --output json | jq -r '.letters[].id'
  forebay dead ls --unrouted")]
pub(crate) struct Ls {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    which: Which,
}

pub(super) async fn run(verb: &Ls, session: &Session) -> anyhow::Result<Exit> {
    let piles = verb.place.piles(session).await?;
    let letters = DeadLetters::new(&session.config);
    let sights = piles.look(&letters, &verb.which.filter(), session).await?;
    letters.close().await;
    if session.for_people() {
        table(&sights)?;
        if matching(&sights) == 0 {
            screen::note(format_args!("no dead letters found; {}", piles.origin));
        }
        sights.iter().for_each(Sight::tell_the_rest);
    } else {
        screen::say_json(&as_json(&sights))?;
    }
    Ok(Exit::Fine)
}

/// The table that `redrive` and `purge` show too, when nothing is to be done yet.
pub(super) fn table(sights: &[Sight]) -> Result<(), Stop> {
    if matching(sights) == 0 {
        return Ok(());
    }
    let now_ms = now_ms();
    let letters = sights.iter().flat_map(|sight| &sight.listing.letters);
    let header = ["id", "kind", "queue", "reason", "attempts", "died", "last error"];
    screen::say_table(header, letters.map(|letter| letter::row(letter, now_ms)))
}

pub(super) fn as_json(sights: &[Sight]) -> Value {
    let piles = sights.iter().map(|sight| {
        json!({
            "pile": name(&sight.pile),
            "matching": sight.matching(),
            "looked_at": sight.listing.looked_at,
            "total": sight.listing.total,
        })
    });
    let letters = sights.iter().flat_map(|sight| &sight.listing.letters);
    json!({ "piles": piles.collect::<Value>(), "letters": letters.map(letter::json).collect::<Value>() })
}
