//! `forebay delays ls`: how many jobs wait on each level, and whether they can move on.
//! In: passive looks, and the management API where there is one. Out: one line for each level;
//! nothing is taken from any queue.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use forebay_producer::wire::delay::LEVELS;
use forebay_producer::wire::topology::{Declaration, Target};
use forebay_producer::{DeadError, Inspector};
use futures_util::future::{join, try_join_all};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ladder::{End, Ladder, Level, State};
use crate::exit::{self, Exit, Stop};
use crate::globals::{Globals, Session};
use crate::management::Api;
use crate::{known, moment, screen};

/// Show how many jobs wait on each level of the delay ladder
#[derive(Args)]
#[command(after_help = "\
A delayed job comes down the ladder level by level; each level holds it for a fixed time or lets it
pass. Level K holds for 0.1 s × 2^K. \"Left\" is the longest that a job on the level can still have
before it. What one job has left, and which queue it goes to, cannot be seen without taking it, and
nothing is taken.

States:
  ok                all that a job on this level needs is there
  queue missing, exchange missing, binding missing
                    jobs that have to pass this level stay on the levels above it; nothing is lost.
                    `forebay topology apply` declares what is missing (bindings are seen only by the
                    management API); the broker then tries again, within three minutes
  held up           the level is well, and one below it is not
  consumed          somebody takes jobs from it before their time

Jobs that are due have been on a level for its time, and the next exchange or queue has not taken
them yet. AMQP does not count them, the management API does (FOREBAY_MANAGEMENT_URL). Under load they
are due for a moment; a number that stays means that a queue behind them takes nothing.

Examples:
  forebay delays ls
  FOREBAY_MANAGEMENT_URL=http://monitor:secret@rabbit:15672 forebay delays ls
  forebay delays ls --output json | jq '.levels[] | select(.state != \"ok\")'")]
pub(crate) struct Ls {}

pub(super) async fn run(session: &Session, globals: &Globals) -> anyhow::Result<Exit> {
    let inspector = Inspector::new(&session.config);
    let seen = session.patiently(look(&inspector, session)).await;
    inspector.close().await;
    let sight = seen?;
    let forebay = format!("forebay{}", globals.repeated());
    if session.for_people() {
        for_people(&sight, &forebay)?;
    } else {
        screen::say_json(&as_json(&sight, &forebay))?;
    }
    Ok(Exit::Fine)
}

struct Sight {
    ladder: Ladder,
    unrouted: u64,
    /// Queues that have to be bound again, because what they were bound to is gone.
    unbound: Vec<String>,
    /// Whether the management API told what is due and what is bound.
    managed: bool,
}

async fn look(inspector: &Inspector, session: &Session) -> anyhow::Result<Sight> {
    let topology = session.config.topology();
    let looks = (0..LEVELS).map(|level| look_at(inspector, topology.delay(level)));
    let mut levels = try_join_all(looks).await?;
    let unrouted = inspector.count(&topology.unrouted()).await;
    let mut end = End {
        exchange: there(inspector, &topology.deliver_exchange()).await?,
        unrouted: there(inspector, &topology.unrouted()).await?,
        bound: None,
    };
    let told = ask(session).await?;
    if let Some(told) = &told {
        for (level, seen) in (0..LEVELS).zip(&mut levels) {
            seen.due = seen.waiting.and(told.due.get(&topology.delay(level)).copied());
        }
        let top = (0..LEVELS).rev().find(|level| levels[usize::from(*level)].is_there());
        for declaration in top.map(|top| topology.for_ladder(top)).unwrap_or_default() {
            let Declaration::Binding { from, to, key } = declaration else { continue };
            let bound = told.binds(&from, &to, &key);
            let place = match (0..LEVELS).find(|level| topology.delay(*level) == from) {
                Some(level) => &mut levels[usize::from(level)].bound,
                None => &mut end.bound,
            };
            *place = Some(bound && *place != Some(false));
        }
    }
    let ladder = Ladder::new(levels, end);
    if ladder.top().is_none() {
        // Nothing was ever delayed: nothing behind the ladder is missing either.
        let (ladder, managed) = (Ladder::default(), told.is_some());
        return Ok(Sight { ladder, unrouted: 0, unbound: Vec::new(), managed });
    }
    let unbound = match ladder.end.exchange {
        Some(false) => known::queues(&[], session).await?.queues,
        _ => Vec::new(),
    };
    let unrouted = match unrouted {
        Ok(count) => count.map_or(0, |count| count.ready.into()),
        Err(DeadError::MayNotLook { .. }) => 0,
        Err(error) => return Err(error.into()),
    };
    Ok(Sight { ladder, unrouted, unbound, managed: told.is_some() })
}

async fn look_at(inspector: &Inspector, name: String) -> Result<Level, DeadError> {
    let (count, exchange) = join(inspector.count(&name), there(inspector, &name)).await;
    let (count, exchange) = (count?, exchange?);
    Ok(Level {
        waiting: count.map(|count| count.ready),
        consumers: count.map_or(0, |count| count.consumers),
        exchange,
        ..Level::default()
    })
}

/// Whether an exchange is there; `None` if this user may not look.
async fn there(inspector: &Inspector, exchange: &str) -> Result<Option<bool>, DeadError> {
    match inspector.has_exchange(exchange).await {
        Ok(there) => Ok(Some(there)),
        Err(DeadError::MayNotLook { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What only the management API tells. It may be five seconds old.
struct Told {
    due: HashMap<String, u64>,
    bindings: Vec<Bound>,
}

#[derive(Deserialize)]
struct Due {
    name: String,
    /// Absent where nothing was counted yet.
    messages_dlx: Option<u64>,
}

#[derive(Deserialize)]
struct Bound {
    source: String,
    destination: String,
    destination_type: String,
    routing_key: String,
}

impl Told {
    fn binds(&self, from: &str, to: &Target, key: &str) -> bool {
        let (kind, name) = match to {
            Target::Queue(name) => ("queue", name),
            Target::Exchange(name) => ("exchange", name),
            _ => return false,
        };
        self.bindings.iter().any(|one| {
            (one.source == from && one.routing_key == key)
                && (one.destination_type == kind && one.destination == *name)
        })
    }
}

/// A wrong setting is an error; an API that does not answer is not, we can do without.
async fn ask(session: &Session) -> anyhow::Result<Option<Told>> {
    let Some(url) = &session.management else { return Ok(None) };
    let api = Api::new(url, session.timeout)?;
    let vhost = session.config.vhost();
    let told = async {
        let queues: Vec<Due> = api.get(&["queues", vhost], Some("name,messages_dlx")).await?;
        let columns = "source,destination,destination_type,routing_key";
        let bindings = api.get(&["bindings", vhost], Some(columns)).await?;
        let due = queues.into_iter().filter_map(|queue| Some((queue.name, queue.messages_dlx?)));
        anyhow::Ok(Told { due: due.collect(), bindings })
    };
    match told.await {
        Ok(told) => Ok(Some(told)),
        Err(error) => {
            let why = exit::sentence(&error);
            screen::note(format_args!("warning: {why}; going on without it"));
            Ok(None)
        }
    }
}

fn for_people(sight: &Sight, forebay: &str) -> Result<(), Stop> {
    let ladder = &sight.ladder;
    let Some(top) = ladder.top() else {
        return screen::say(format_args!(
            "no level of the delay ladder is there: nothing was delayed yet. The first delayed job \
             declares what it needs, or beforehand: {forebay} topology apply --delays 1h"
        ));
    };
    let states = ladder.states();
    let rows = ladder.levels.iter().zip(&states).zip(0..LEVELS);
    if sight.managed {
        let header = ["level", "holds", "waiting", "due", "left", "state"];
        screen::say_table(
            header,
            rows.map(|((seen, state), level)| {
                let due = number(seen.due);
                let [level, holds, waiting, left, state] = cells(level, seen, *state);
                [level, holds, waiting, due, left, state]
            }),
        )?;
    } else {
        let header = ["level", "holds", "waiting", "left", "state"];
        screen::say_table(header, rows.map(|((seen, state), level)| cells(level, seen, *state)))?;
    }
    let waiting = screen::count(ladder.waiting(), "job", "jobs");
    let due = match ladder.due() {
        Some(due) => format!(", {} due", screen::thousands(due)),
        None if states.iter().all(|state| *state == State::Fine) => String::new(),
        None => ", beside those that are due, which only the management API counts: set \
                 FOREBAY_MANAGEMENT_URL"
            .to_owned(),
    };
    let (levels, longest) = (u64::from(top) + 1, moment::short(left(top)));
    screen::say(format_args!(
        "\n{waiting} waiting{due}; {} for delays of less than {longest}",
        screen::count(levels, "level", "levels"),
    ))?;
    if sight.unrouted > 0 {
        let count = screen::thousands(sight.unrouted);
        screen::say(format_args!(
            "unrouted: {count}; their queue was gone when their delay was over: {forebay} dead ls \
             --unrouted"
        ))?;
    }
    for line in faults(sight, &states) {
        screen::say(line)?;
    }
    if let Some(mend) = mend(sight, &states, forebay) {
        screen::say(format_args!("mend: {mend}"))?;
    }
    if !sight.managed {
        screen::say("jobs that are due are not counted without FOREBAY_MANAGEMENT_URL")?;
    }
    Ok(())
}

fn cells(level: u8, seen: &Level, state: State) -> [String; 5] {
    let (holds, left) = (moment::short(holds(level)), moment::short(left(level)));
    let waiting = number(seen.waiting.map(u64::from));
    [level.to_string(), holds, waiting, format!("< {left}"), state.to_string()]
}

fn number(count: Option<u64>) -> String {
    count.map_or_else(|| "-".to_owned(), screen::thousands)
}

/// A sentence for each thing that is wrong.
fn faults(sight: &Sight, states: &[State]) -> Vec<String> {
    let stay = "what has to pass it stays on the levels above, and is not lost";
    let of_level = |(level, state): (usize, &State)| match state {
        State::NoQueue => Some(format!("level {level}: its queue is not there; {stay}")),
        State::NoExchange => Some(format!("level {level}: its exchange is not there; {stay}")),
        State::NotBound => {
            Some(format!("level {level}: a binding of its exchange is gone; {stay}"))
        }
        State::Consumed => Some(format!(
            "level {level}: somebody consumes from it, and takes jobs before their time; nobody of \
             Forebay does"
        )),
        State::Fine | State::HeldUp => None,
    };
    let mut faults: Vec<_> = states.iter().enumerate().filter_map(of_level).collect();
    if let Some(fault) = sight.ladder.end.fault() {
        faults.push(format!("{fault}: jobs whose delay is over stay on the ladder, none is lost"));
    }
    if !sight.unbound.is_empty() {
        faults.push(
            "the queues' bindings to it are gone too: name each queue with --queue, or its jobs go \
             to unrouted"
                .to_owned(),
        );
    }
    faults
}

/// The command that declares what is missing, if anything is.
fn mend(sight: &Sight, states: &[State], forebay: &str) -> Option<String> {
    let ladder = &sight.ladder;
    let broken = ladder.end.fault().is_some() || states.iter().any(|state| state.is_broken());
    // A delay of exactly one level's time takes all levels up to it.
    let top = ladder.top().filter(|_| broken)?;
    let queues: String = sight.unbound.iter().map(|queue| format!(" --queue {queue}")).collect();
    Some(format!("{forebay} topology apply{queues} --delays {}ms", holds(top).as_millis()))
}

fn as_json(sight: &Sight, forebay: &str) -> Value {
    let (ladder, states) = (&sight.ladder, sight.ladder.states());
    let levels = ladder.levels.iter().zip(&states).zip(0..LEVELS).map(|((seen, state), level)| {
        json!({
            "level": level,
            "holds_ms": holds(level).as_millis() as u64,
            "less_than_ms": left(level).as_millis() as u64,
            "waiting": seen.waiting,
            "due": seen.due,
            "state": state.to_string(),
        })
    });
    json!({
        "levels": levels.collect::<Value>(),
        "waiting": ladder.waiting(),
        "due": ladder.due(),
        "unrouted": sight.unrouted,
        "faults": faults(sight, &states),
        "mend": mend(sight, &states, forebay),
    })
}

/// How long a level holds each job.
fn holds(level: u8) -> Duration {
    Duration::from_millis(100 << level)
}

/// The longest that a job on this level still has to wait: there and on all levels below.
fn left(level: u8) -> Duration {
    Duration::from_millis(100 << (level + 1))
}
