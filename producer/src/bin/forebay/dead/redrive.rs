//! `forebay dead redrive`: gives dead letters another try.
//! In: piles and a filter. Out: their jobs are on their queues again; each letter is removed once
//! its copy is confirmed, so that nothing is lost whatever happens in between.

use std::cell::RefCell;

use clap::Args;
use forebay_producer::{DeadLetters, Done, Filter, Pile, RedriveOptions};
use serde_json::{Value, json};
use tokio::signal;

use super::{Piles, Sight, Where, Which, confirm, count, ls, matching, queue_name};
use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::screen;

/// More than that are asked about.
const MANY: u64 = 100;

/// Put dead letters on their queues again
#[derive(Args)]
#[command(after_help = "\
They start anew: first attempt, no crashes counted, failures kept for the record.

Examples:
  forebay dead redrive --id order-4711
  forebay dead redrive --queue mail --reason timeout --dry-run
  forebay dead redrive --queue mail --rate 10 --limit 20000 --yes
  forebay dead redrive --unrouted --to mail

Interrupted by Ctrl-C it loses nothing: a letter is removed only after its copy is confirmed.")]
pub(crate) struct Redrive {
    #[command(flatten)]
    place: Where,
    /// Only show which ones
    #[arg(long)]
    dry_run: bool,

    /// At most so many per second, so as not to run over what broke before
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,

    /// To this queue instead of the one each came from
    #[arg(long, value_name = "QUEUE", value_parser = queue_name)]
    to: Option<String>,

    /// Do not ask, even if there are more than 100
    #[arg(long)]
    yes: bool,

    // Last: its heading holds for everything behind it.
    #[command(flatten)]
    which: Which,
}

pub(super) async fn run(verb: &Redrive, session: &Session) -> anyhow::Result<Exit> {
    let mut piles = verb.place.piles(session).await?;
    let (letters, filter) = (DeadLetters::new(&session.config), verb.which.filter());
    let sights = piles.look(&letters, &filter, session).await?;
    let many = matching(&sights);
    if verb.dry_run {
        letters.close().await;
        return dry_run(&sights, session);
    }
    if many > MANY {
        confirm(verb.yes, "redrive", many)?;
    }
    // Where nothing fits there is nothing to do.
    piles.piles =
        sights.iter().filter(|sight| sight.matching() > 0).map(|s| s.pile.clone()).collect();
    let (done, interrupted) = redrive(verb, &piles, &filter, &letters, many, session).await?;
    letters.close().await;
    report(&done, interrupted, session)?;
    sights.iter().for_each(Sight::tell_the_rest);
    Ok(if interrupted || !done.failed.is_empty() { Exit::Failed } else { Exit::Fine })
}

/// What has been done over all piles.
#[derive(Debug, Default)]
struct Sum {
    done: u64,
    left: u64,
    failed: Vec<(String, String)>,
}

impl Sum {
    fn and(&self, done: &Done) -> Self {
        let failed = self.failed.iter().chain(&done.failed).cloned().collect();
        Self { done: self.done + done.done, left: self.left + done.left, failed }
    }
}

async fn redrive(
    verb: &Redrive,
    piles: &Piles,
    filter: &Filter,
    letters: &DeadLetters,
    many: u64,
    session: &Session,
) -> anyhow::Result<(Sum, bool)> {
    let mut sum = Sum::default();
    if piles.piles.is_empty() {
        return Ok((sum, false));
    }
    let mut options = RedriveOptions::default();
    options.rate = verb.rate;
    options.to.clone_from(&verb.to);
    let producer = session.producer().await?;
    let bar = screen::progress(Some(many));
    for pile in &piles.piles {
        let so_far = RefCell::new(Done::default());
        let progress = |done: &Done| {
            so_far.replace(done.clone());
            let total = sum.done + done.done;
            bar.set_message(format!("{} redriven", screen::thousands(total)));
            bar.set_position(total + (sum.failed.len() + done.failed.len()) as u64);
        };
        let move_all = letters.redrive(pile, filter, piles.limit, &options, &producer, progress);
        let done = tokio::select! {
            biased;
            // Cancel-safe: dropping the redrive leaves what is not acknowledged in its place.
            _ = signal::ctrl_c() => None,
            done = move_all => Some(done),
        };
        match done {
            Some(Ok(done)) => sum = sum.and(&done),
            Some(Err(error)) => {
                bar.finish_and_clear();
                let done = sum.and(&so_far.borrow()).done;
                return Err(anyhow::Error::new(error).context(stopped(done, pile)));
            }
            None => {
                bar.finish_and_clear();
                return Ok((sum.and(&so_far.borrow()), true));
            }
        }
    }
    bar.finish_and_clear();
    producer.close().await;
    Ok((sum, false))
}

fn dry_run(sights: &[Sight], session: &Session) -> anyhow::Result<Exit> {
    if session.for_people() {
        ls::table(sights)?;
        screen::say(format_args!(
            "{} would be redriven; nothing was done",
            count(matching(sights))
        ))?;
        sights.iter().for_each(Sight::tell_the_rest);
    } else {
        screen::say_json(&ls::as_json(sights))?;
    }
    Ok(Exit::Fine)
}

fn report(sum: &Sum, interrupted: bool, session: &Session) -> Result<(), Stop> {
    for (id, why) in &sum.failed {
        screen::note(format_args!("{id} stays a dead letter: {why}"));
    }
    if session.for_people() {
        screen::say(format_args!("{} redriven", count(sum.done)))?;
    } else {
        let failed = sum.failed.iter().map(|(id, why)| json!({ "id": id, "why": why }));
        screen::say_json(&json!({
            "redriven": sum.done,
            "left": sum.left,
            "failed": failed.collect::<Value>(),
            "interrupted": interrupted,
        }))?;
    }
    if interrupted {
        screen::note(
            "interrupted: nothing is lost, the others are still dead letters; the one under way \
             may now be in both places",
        );
    }
    Ok(())
}

fn stopped(done: u64, pile: &Pile) -> String {
    format!("stopped in {} after {} redriven", super::name(pile), count(done))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("a number of jobs per second between 0.001 and 100000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_that_time_can_be_divided_by() {
        assert_eq!(rate("0.5"), Ok(0.5));
        for text in ["0", "-1", "inf", "NaN", "1e12", "fast"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
