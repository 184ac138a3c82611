//! `forebay queues`: what waits, who consumes, what is dead, what is delayed.
//! In: queue names from wherever they are known. Out: counts; nothing is taken from any queue.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use forebay_producer::{Inspector, QueueCount};
use serde_json::{Value, json};
use tokio::time;

use crate::exit::{self, Exit, Stop};
use crate::globals::Session;
use crate::known::{self, Known};
use crate::{moment, screen};

/// From here on somebody should look at the dead letters.
pub(crate) const MANY_DEAD: u64 = 10_000;

/// Show how many jobs wait, run, are delayed and are dead
#[derive(Args)]
#[command(after_help = "\
Examples:
  forebay queues
  forebay queues --queue mail --queue reports --watch 5
  forebay queues --output json | jq '.queues[] | select(.dead > 0)'

AMQP cannot be asked which queues there are. They come from forebay.toml, or from --queue, or from
the management API if FOREBAY_MANAGEMENT_URL=http://user:password@host:15672 is set, which also
tells how many jobs run now.")]
pub(crate) struct Queues {
    /// Only this queue; may be given several times
    #[arg(long, value_name = "NAME")]
    queue: Vec<String>,

    /// Draw it again every so many seconds, until Ctrl-C
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    watch: Option<u64>,
}

pub(crate) async fn run(verb: &Queues, session: &Session) -> anyhow::Result<Exit> {
    let inspector = Inspector::new(&session.config);
    show(&look(verb, &inspector, session).await?, session)?;
    while let Some(seconds) = verb.watch {
        time::sleep(Duration::from_secs(seconds)).await;
        match look(verb, &inspector, session).await {
            Ok(sight) => {
                if session.for_people() && io::stdout().is_terminal() {
                    // Home, and clear the screen.
                    screen::say("\u{1b}[H\u{1b}[2J")?;
                }
                show(&sight, session)?;
            }
            // It may come back: whoever watches wants to see that.
            Err(error) => screen::note(format_args!("error: {}", exit::sentence(&error))),
        }
    }
    inspector.close().await;
    Ok(Exit::Fine)
}

/// All that one look shows.
struct Sight {
    known: Known,
    queues: Vec<Queue>,
    delayed: Vec<u32>,
    unrouted: u64,
}

struct Queue {
    name: String,
    /// `None`: not on the broker.
    count: Option<QueueCount>,
    dead: Option<u64>,
    running: Option<u64>,
}

async fn look(verb: &Queues, inspector: &Inspector, session: &Session) -> anyhow::Result<Sight> {
    let known = known::queues(&verb.queue, session).await?;
    let topology = session.config.topology();
    let delayed = session.patiently(inspector.delayed()).await?;
    let unrouted = ready(inspector, &topology.unrouted()).await?.unwrap_or(0);
    let mut queues = Vec::new();
    for name in &known.queues {
        let full = topology.queue(name);
        let counts = known.overview.as_ref().and_then(|overview| overview.get(&full));
        queues.push(Queue {
            name: name.clone(),
            count: inspector.count(&full).await?,
            dead: ready(inspector, &topology.dead_queue(name)).await?,
            running: counts.map(|counts| counts.messages_unacknowledged),
        });
    }
    Ok(Sight { known, queues, delayed, unrouted })
}

async fn ready(inspector: &Inspector, full_name: &str) -> anyhow::Result<Option<u64>> {
    let count = inspector.count(full_name).await?;
    Ok(count.map(|count| count.ready.into()))
}

fn show(sight: &Sight, session: &Session) -> Result<(), Stop> {
    if session.for_people() {
        for_people(sight)?;
    } else {
        screen::say_json(&as_json(sight))?;
    }
    for queue in &sight.queues {
        if let Some(dead) = queue.dead.filter(|dead| *dead >= MANY_DEAD) {
            screen::note(format_args!(
                "warning: queue `{name}` has {dead} dead letters; see what they died of: \
                 forebay dead ls --queue {name}",
                name = queue.name,
                dead = screen::thousands(dead)
            ));
        }
    }
    Ok(())
}

fn for_people(sight: &Sight) -> Result<(), Stop> {
    let number = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), screen::thousands);
    let ready = |queue: &Queue| number(queue.count.map(|count| count.ready.into()));
    let consumers = |queue: &Queue| number(queue.count.map(|count| count.consumers.into()));
    if sight.known.overview.is_some() {
        let row = |queue: &Queue| {
            let running = number(queue.running);
            [queue.name.clone(), ready(queue), running, consumers(queue), number(queue.dead)]
        };
        let header = ["queue", "ready", "running", "consumers", "dead"];
        screen::say_table(header, sight.queues.iter().map(row))?;
    } else {
        let row = |queue: &Queue| {
            [queue.name.clone(), ready(queue), consumers(queue), number(queue.dead)]
        };
        let header = ["queue", "ready", "consumers", "dead"];
        screen::say_table(header, sight.queues.iter().map(row))?;
    }
    screen::say(format_args!("\n{}", delayed_line(&sight.delayed)))?;
    if sight.unrouted > 0 {
        let count = screen::thousands(sight.unrouted);
        screen::say(format_args!(
            "unrouted: {count}; their queue was gone when their delay was over: forebay dead ls \
             --unrouted"
        ))?;
    }
    for queue in sight.queues.iter().filter(|queue| queue.count.is_none()) {
        let name = &queue.name;
        screen::say(format_args!(
            "queue `{name}` is not on the broker: a worker or the first job will declare it"
        ))?;
    }
    screen::say(sight.known.origin())
}

/// `delayed: 12 (2 for less than 3.2s, 10 for less than 1h 49m)`.
fn delayed_line(levels: &[u32]) -> String {
    let total: u64 = levels.iter().copied().map(u64::from).sum();
    if total == 0 {
        return "delayed: 0".to_owned();
    }
    let levels = levels.iter().enumerate().filter(|(_, jobs)| **jobs > 0).map(|(level, jobs)| {
        let (jobs, most) = (screen::thousands((*jobs).into()), moment::short(longest(level)));
        format!("{jobs} on level {level} for less than {most}")
    });
    format!("delayed: {} ({})", screen::thousands(total), levels.collect::<Vec<_>>().join(", "))
}

/// The longest that a job on this level still has to wait: there and on all levels below.
fn longest(level: usize) -> Duration {
    Duration::from_millis(100 << (level + 1))
}

fn as_json(sight: &Sight) -> Value {
    let queues = sight.queues.iter().map(|queue| {
        json!({
            "queue": queue.name,
            "exists": queue.count.is_some(),
            "ready": queue.count.map(|count| count.ready),
            "running": queue.running,
            "consumers": queue.count.map(|count| count.consumers),
            "dead": queue.dead,
        })
    });
    let levels = sight.delayed.iter().enumerate().map(|(level, jobs)| {
        json!({ "level": level, "jobs": jobs, "less_than_ms": longest(level).as_millis() as u64 })
    });
    json!({
        "queues": queues.collect::<Value>(),
        "delayed": {
            "total": sight.delayed.iter().copied().map(u64::from).sum::<u64>(),
            "levels": levels.collect::<Value>(),
        },
        "unrouted": sight.unrouted,
        "sources": sight.known.sources,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delayed_jobs_stand_on_one_line_with_their_sum() {
        assert_eq!(delayed_line(&[0, 0]), "delayed: 0");
        assert_eq!(
            delayed_line(&[0, 2, 0, 0, 10]),
            "delayed: 12 (2 on level 1 for less than 0.4s, 10 on level 4 for less than 3.2s)"
        );
    }
}
