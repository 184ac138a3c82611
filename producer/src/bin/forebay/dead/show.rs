//! `forebay dead show`: everything about one dead letter.
//! In: a job id. Out: payload, headers and every failure; it is given back.

use clap::Args;
use forebay_producer::wire::envelope::now_ms;
use forebay_producer::{DeadLetters, Filter};
use serde_json::Value;

use super::letter;
use super::{Sight, Where};
use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::screen;

/// Show everything about a dead letter: payload, headers, every failure
#[derive(Args)]
#[command(after_help = "\
Examples:
  forebay dead show 0198c5a2-7f0e-7c31-b2a4-5d9f3a1e6c77
  forebay dead show order-4711 --queue mail --output json | jq .payload")]
pub(crate) struct Show {
    /// The job's id
    id: String,
    #[command(flatten)]
    place: Where,
}

pub(super) async fn run(verb: &Show, session: &Session) -> anyhow::Result<Exit> {
    let piles = verb.place.piles(session).await?;
    let letters = DeadLetters::new(&session.config);
    let mut filter = Filter::default();
    filter.id = Some(verb.id.clone());
    let sights = piles.look(&letters, &filter, session).await?;
    letters.close().await;
    let found: Vec<_> = sights.iter().flat_map(|sight| &sight.listing.letters).collect();
    if found.is_empty() {
        sights.iter().for_each(Sight::tell_the_rest);
        let (id, origin) = (&verb.id, &piles.origin);
        return Err(Stop::Failed(format!("no dead letter has the id `{id}`; {origin}")).into());
    }
    if !session.for_people() {
        // One object for one letter; a list only if an id was used twice.
        screen::say_json(&match found.as_slice() {
            [one] => letter::json(one),
            several => several.iter().map(|found| letter::json(found)).collect::<Value>(),
        })?;
        return Ok(Exit::Fine);
    }
    for (place, found) in found.iter().enumerate() {
        if place > 0 {
            screen::say("\n——\n")?;
        }
        screen::say(letter::page(found, now_ms()))?;
    }
    Ok(Exit::Fine)
}
