//! `forebay dead`: look at dead letters, give them another try, remove them, keep a copy.
//! In: which pile, which of its letters. Out: one verb a file; this one knows what they share.

mod export;
mod letter;
mod ls;
mod purge;
mod redrive;
mod show;

use std::time::Duration;

use clap::{Args, Subcommand};
use forebay_producer::{
    DeadError, DeadLetters, Filter, InvalidName, Listing, Pile, check_queue_name,
};

use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::{known, moment, screen};

/// The library reads so many at most.
const MOST: u16 = u16::MAX;

/// Look at dead letters, redrive, purge or export them
#[derive(Args)]
#[command(after_help = "\
Examples:
  forebay dead ls --queue mail --reason timeout
  forebay dead show 0198c5a2-7f0e-7c31-b2a4-5d9f3a1e6c77
  forebay dead redrive --queue mail --kind email.send --rate 10
  forebay dead export --to-file dead.jsonl
  forebay dead purge --queue mail --older-than 30days

Reasons: failed, rejected, undecodable, unknown_kind, timeout, panic, expired, crashed; `broker: …`
when the broker itself moved it; unrouted.")]
pub(crate) struct Dead {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Ls(ls::Ls),
    Show(show::Show),
    Redrive(redrive::Redrive),
    Purge(purge::Purge),
    Export(export::Export),
}

pub(crate) async fn run(verb: Dead, session: &Session) -> anyhow::Result<Exit> {
    match verb.verb {
        Verb::Ls(verb) => ls::run(&verb, session).await,
        Verb::Show(verb) => show::run(&verb, session).await,
        Verb::Redrive(verb) => redrive::run(&verb, session).await,
        Verb::Purge(verb) => purge::run(&verb, session).await,
        Verb::Export(verb) => export::run(&verb, session).await,
    }
}

/// Where to look.
#[derive(Args)]
struct Where {
    /// Dead letters of this queue; may be given several times [default: all known queues]
    #[arg(long, value_name = "NAME", conflicts_with = "unrouted")]
    queue: Vec<String>,

    /// What came off the delay ladder after its queue had gone
    #[arg(long)]
    unrouted: bool,

    /// Look at so many of each queue, oldest first, at most 65535
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1_000,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    limit: u16,
}

/// Which letters are meant; all that are given must fit.
#[derive(Args)]
#[command(next_help_heading = "Which dead letters (all, unless given)")]
struct Which {
    /// Jobs of this kind
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,

    /// Those that died of this
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,

    /// Those that died longer ago
    #[arg(long, value_name = "DURATION", value_parser = moment::duration)]
    older_than: Option<Duration>,

    /// Those that died since
    #[arg(long, value_name = "DURATION", value_parser = moment::duration)]
    newer_than: Option<Duration>,

    /// The job with this id
    #[arg(long, value_name = "ID")]
    id: Option<String>,
}

impl Which {
    fn filter(&self) -> Filter {
        let mut filter = Filter::default();
        filter.kind.clone_from(&self.kind);
        filter.reason.clone_from(&self.reason);
        filter.id.clone_from(&self.id);
        filter.older_than = self.older_than;
        filter.newer_than = self.newer_than;
        filter
    }
}

/// The piles to look at.
struct Piles {
    piles: Vec<Pile>,
    /// The user named them: each has to be there.
    named: bool,
    origin: String,
    limit: u16,
}

/// What lies in one pile.
struct Sight {
    pile: Pile,
    listing: Listing,
}

impl Where {
    async fn piles(&self, session: &Session) -> anyhow::Result<Piles> {
        let limit = self.limit;
        if self.unrouted {
            let origin = "looked at what had no queue any more".to_owned();
            return Ok(Piles { piles: vec![Pile::Unrouted], named: false, origin, limit });
        }
        let known = known::queues(&self.queue, session).await?;
        let (named, origin) = (!self.queue.is_empty(), known.origin());
        let piles = known.queues.into_iter().map(Pile::Queue).collect();
        Ok(Piles { piles, named, origin, limit })
    }
}

impl Piles {
    /// Looks at all of them and takes nothing. A queue that nobody named need not be there.
    async fn look(
        &self,
        letters: &DeadLetters,
        filter: &Filter,
        session: &Session,
    ) -> anyhow::Result<Vec<Sight>> {
        let mut sights = Vec::new();
        for pile in &self.piles {
            match session.patiently(letters.list(pile, filter, self.limit)).await {
                Ok(listing) => sights.push(Sight { pile: pile.clone(), listing }),
                Err(DeadError::Missing { .. }) if !self.named => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sights)
    }
}

impl Sight {
    fn matching(&self) -> u64 {
        self.listing.letters.len() as u64
    }

    /// Says so when not everything was looked at.
    fn tell_the_rest(&self) {
        let Listing { looked_at, total, .. } = self.listing;
        if looked_at < total {
            screen::note(rest(&name(&self.pile), looked_at, total));
        }
    }
}

fn matching(sights: &[Sight]) -> u64 {
    sights.iter().map(Sight::matching).sum()
}

fn name(pile: &Pile) -> String {
    match pile {
        Pile::Queue(queue) => queue.clone(),
        _ => "unrouted".to_owned(),
    }
}

fn rest(pile: &str, looked_at: u64, total: u64) -> String {
    let how = match u16::try_from(total) {
        Ok(total) => format!("--limit {total} looks at all"),
        Err(_) => format!("--limit {MOST} is the most at a time"),
    };
    let (looked_at, total) = (screen::thousands(looked_at), screen::thousands(total));
    format!("{pile}: looked at {looked_at} of {total}, the oldest; {how}")
}

/// Asks before much is moved or anything is removed, unless `--yes` was given. `word` is the verb
/// and what has to be typed.
fn confirm(yes: bool, word: &str, letters: u64) -> Result<(), Stop> {
    if yes {
        return Ok(());
    }
    let what = format!("about to {word} {}", count(letters));
    let asked = screen::ask(&format!("{what}; type `{word}` to go on:"));
    match asked.map_err(|error| Stop::Failed(format!("cannot ask: {error}")))? {
        Some(answer) if answer == word => Ok(()),
        Some(_) => Err(Stop::Failed("nothing was done".to_owned())),
        None => Err(Stop::Usage(format!(
            "{what}, but nobody is there to ask: give --yes to do it, or --dry-run to see which; \
             nothing was done"
        ))),
    }
}

fn count(letters: u64) -> String {
    screen::count(letters, "dead letter", "dead letters")
}

/// A queue to send to must have a name that is allowed.
fn queue_name(text: &str) -> Result<String, InvalidName> {
    check_queue_name(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_looked_at_is_told_with_the_flag_that_looks_at_it() {
        let all = rest("mail", 1_000, 12_345);
        assert_eq!(all, "mail: looked at 1,000 of 12,345, the oldest; --limit 12345 looks at all");
        assert!(rest("mail", 1_000, 70_000).ends_with("--limit 65535 is the most at a time"));
    }
}
