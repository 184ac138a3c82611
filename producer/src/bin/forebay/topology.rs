//! `forebay topology`: what Forebay has on the broker.
//! In: queue names and the longest delay, where the manifest has a say too. Out: the declarations,
//! printed, carried out or undone.

mod delete;

use std::time::Duration;

use clap::{Args, Subcommand};
use forebay_producer::link::connection::Link;
use forebay_producer::link::declare::Declarer;
use forebay_producer::wire::delay::LEVELS;
use forebay_producer::wire::topology::{Argument, Declaration, Target};
use forebay_producer::{Declare, Delay, Inspector, check_queue_name};
use serde_json::json;
use tokio::time::Instant;

use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::manifest::Manifest;
use crate::{moment, screen};

/// Print what Forebay needs on the broker, declare it or delete it
#[derive(Args)]
#[command(after_help = "\
Examples:
  forebay topology show --queue mail
  forebay topology show --output json > topology.json
  forebay topology apply --queue mail --queue reports --delays 7days
  forebay topology apply --events

Workers and producers declare what they need by themselves. Apply it beforehand where they may not:
run this as an administrator, and them with FOREBAY_DECLARE=never. For such, the longest wait counts
that a function of the manifest may ask for (retry, Retry-After of http). What publishers, workers
in Rust and programs under serve ask for beyond that, only --delays can tell.")]
pub(crate) struct Topology {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print all declarations; asks no broker
    #[command(after_help = "\
Examples:
  forebay topology show
  forebay topology show --queue mail --delays 0s")]
    Show(Scope),
    /// Declare what is missing
    #[command(after_help = "\
What is there already stays as it is. A queue that exists with other arguments is named in a
warning, or with --strict-topology refused (exit code 2).

Examples:
  forebay topology apply
  forebay topology apply --queue mail --delays 7days --strict-topology")]
    Apply(Scope),
    /// Delete what was declared; keeps what holds messages
    Delete(delete::Delete),
}

#[derive(Args)]
struct Scope {
    /// This queue; may be given several times [default: the manifest's, else `default`]
    #[arg(long, value_name = "NAME")]
    queue: Vec<String>,

    /// Delays up to this long, and in any case up to the longest that a function of the manifest
    /// may ask for
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "1h",
        value_parser = moment::duration
    )]
    delays: Duration,

    /// The stream of events too, which tracked jobs, channels and the gateway need
    #[arg(long)]
    events: bool,
}

pub(crate) async fn run(verb: &Topology, session: &Session) -> anyhow::Result<Exit> {
    match &verb.verb {
        Verb::Show(scope) => show(scope, session)?,
        Verb::Apply(scope) => apply(scope, session).await?,
        Verb::Delete(verb) => return delete::run(verb, session).await,
    }
    Ok(Exit::Fine)
}

fn show(scope: &Scope, session: &Session) -> anyhow::Result<()> {
    let declarations = scope.declarations(session)?;
    if session.for_people() {
        screen::say_table(["what", "name", "arguments"], declarations.iter().map(row))?;
    } else {
        screen::say_json(&json!(declarations))?;
    }
    Ok(())
}

async fn apply(scope: &Scope, session: &Session) -> anyhow::Result<()> {
    let declarations = scope.declarations(session)?;
    let inspector = Inspector::new(&session.config);
    let mut made = Vec::new();
    for name in queues_in(&declarations) {
        if session.patiently(inspector.count(name)).await?.is_none() {
            made.push(name);
        }
    }
    inspector.close().await;
    // This is the one place that declares even where FOREBAY_DECLARE=never: it was told to.
    let config = session.config.clone().declare(Declare::Auto);
    let declarer = Declarer::new(Link::open(&config, "topology"), &config);
    declarer.apply(&declarations, Instant::now() + session.timeout).await?;
    report(&declarations, &made, session)?;
    Ok(())
}

fn report(declarations: &[Declaration], made: &[&str], session: &Session) -> Result<(), Stop> {
    let queues = queues_in(declarations).count();
    let there = queues - made.len();
    if session.for_people() {
        for name in made {
            screen::say(format_args!("declared queue {name}"))?;
        }
        screen::say(format_args!(
            "{}: {} declared, {there} there before; exchanges and bindings are as `forebay \
             topology show` prints them",
            screen::count(queues as u64, "queue", "queues"),
            made.len()
        ))
    } else {
        screen::say_json(&json!({ "declared": made, "there_before": there }))
    }
}

impl Scope {
    fn declarations(&self, session: &Session) -> anyhow::Result<Vec<Declaration>> {
        let mut queues = self.queue.clone();
        if queues.is_empty() {
            queues = session.manifest.queue_names();
        }
        if queues.is_empty() {
            queues.push("default".to_owned());
        }
        let topology = session.config.topology();
        let mut all = Vec::new();
        for queue in &queues {
            check_queue_name(queue)?;
            all.extend(topology.for_queue(queue, session.manifest.queue_type(queue)));
        }
        let asked = Delay::new(self.delays)?.map(Delay::level);
        if let Some(top) = asked.max(wanted_level(&session.manifest)) {
            all.extend(topology.for_ladder(top));
        }
        if self.events {
            all.extend(topology.for_events(session.config.kept()));
        }
        Ok(each_once(all))
    }
}

/// The level that the manifest's functions may need, if it has any.
pub(crate) fn wanted_level(manifest: &Manifest) -> Option<u8> {
    match Delay::new(manifest.longest_wait()?) {
        Ok(delay) => delay.map(Delay::level),
        // Longer than the ladder reaches.
        Err(_) => Some(LEVELS - 1),
    }
}

/// In the same order: it is the one in which they must be made.
pub(crate) fn each_once(declarations: Vec<Declaration>) -> Vec<Declaration> {
    let mut once: Vec<Declaration> = Vec::with_capacity(declarations.len());
    for declaration in declarations {
        if !once.contains(&declaration) {
            once.push(declaration);
        }
    }
    once
}

fn queues_in(declarations: &[Declaration]) -> impl Iterator<Item = &str> {
    declarations.iter().filter_map(|declaration| match declaration {
        Declaration::Queue { name, .. } => Some(name.as_str()),
        _ => None,
    })
}

fn row(declaration: &Declaration) -> [String; 3] {
    match declaration {
        Declaration::Exchange { name, kind, arguments } => {
            [format!("{kind} exchange"), name.clone(), listed(arguments)]
        }
        Declaration::Queue { name, arguments } => {
            ["queue".to_owned(), name.clone(), listed(arguments)]
        }
        Declaration::Binding { from, to, key } => {
            let to = match to {
                Target::Queue(queue) => format!("queue {queue}"),
                Target::Exchange(exchange) => format!("exchange {exchange}"),
                _ => String::new(),
            };
            let key = if key.is_empty() { String::new() } else { format!("key={key}") };
            ["binding".to_owned(), format!("{from} → {to}"), key]
        }
        _ => ["other".to_owned(), String::new(), String::new()],
    }
}

fn listed(arguments: &[(&'static str, Argument)]) -> String {
    let pairs = arguments.iter().map(|(name, value)| format!("{name}={value}"));
    pairs.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_producer::QueueType;

    #[test]
    fn what_two_queues_share_is_declared_once_and_first() {
        let topology = forebay_producer::Topology::new("shop").unwrap();
        let mut all = topology.for_queue("a", QueueType::Quorum);
        let one = all.len();
        all.extend(topology.for_queue("b", QueueType::Quorum));
        let once = each_once(all.clone());
        assert!(once.len() > one && once.len() < all.len());
        assert_eq!(once[..one], all[..one]);
        assert_eq!(queues_in(&once).filter(|name| *name == "shop.unrouted").count(), 1);
    }

    #[test]
    fn a_binding_is_shown_with_both_ends_and_its_key() {
        let topology = forebay_producer::Topology::new("shop").unwrap();
        let rows: Vec<_> = topology.for_queue("a", QueueType::Quorum).iter().map(row).collect();
        assert!(rows.contains(&["binding", "shop → queue shop.a", "key=a"].map(str::to_owned)));
    }
}
