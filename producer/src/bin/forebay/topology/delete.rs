//! `forebay topology delete`: removes what Forebay has declared.
//! In: queues, single names, or the whole namespace. Out: they are gone; what holds messages or is
//! consumed stays, unless that was forced.

use std::collections::BTreeMap;

use clap::{ArgGroup, Args};
use forebay_producer::link::connection::Link;
use forebay_producer::link::declare::Declarer;
use forebay_producer::link::fault::Fault;
use forebay_producer::link::remove::Remover;
use forebay_producer::wire::delay::LEVELS;
use forebay_producer::wire::topology::{Declaration, Target};
use forebay_producer::{Declare, Inspector, TopologyError, check_queue_name};
use serde_json::json;
use tokio::time::Instant;

use super::each_once;
use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::{known, screen};

#[derive(Args)]
#[command(after_help = "\
A queue that holds messages or is consumed is not deleted, and then nothing is. Stop workers and
publishers of the queue before: a job that comes in the very moment of the delete goes with it. Jobs
that run now in a worker that no longer consumes, because it drains or is paused, are seen only
where FOREBAY_MANAGEMENT_URL is set.
A delayed job whose queue is gone is kept: forebay dead ls --unrouted.

Examples:
  forebay topology delete --queue mail --dry-run
  forebay topology delete --queue mail
  forebay topology delete --name forebay.mail
  forebay dead export --to-file dead.jsonl && forebay topology delete --all --force")]
#[command(group(ArgGroup::new("what").required(true)))]
pub(super) struct Delete {
    /// A queue and its dead-letter queue; may be given several times
    #[arg(long, value_name = "NAME", group = "what")]
    queue: Vec<String>,

    /// One queue or exchange by its full name on the broker; may be given several times
    #[arg(long, value_name = "NAME", group = "what")]
    name: Vec<String>,

    /// The whole namespace: all known queues, the delay ladder, unrouted, events, the exchanges
    #[arg(long, group = "what")]
    all: bool,

    /// Only show what would be deleted
    #[arg(long)]
    dry_run: bool,

    /// Delete queues with the messages in them, and queues that are consumed
    #[arg(long)]
    force: bool,

    /// Do not ask before messages are deleted
    #[arg(long, requires = "force")]
    yes: bool,
}

/// A queue that is there.
struct Sight {
    name: String,
    messages: u64,
    consumers: u64,
}

/// What is to go.
struct Plan {
    /// All that Forebay declares, for their bindings and kinds.
    declarations: Vec<Declaration>,
    queues: Vec<String>,
    exchanges: Vec<String>,
    /// Jobs that run now, by queue, if the management API tells.
    unacked: BTreeMap<String, u64>,
}

pub(super) async fn run(verb: &Delete, session: &Session) -> anyhow::Result<Exit> {
    let plan = Plan::new(verb, session).await?;
    let sights = look(&plan, session).await?;
    if verb.dry_run {
        return report(&sights, &plan.exchanges, "would be deleted; nothing was done", session);
    }
    let in_use: Vec<_> =
        sights.iter().filter(|one| one.messages + one.consumers > 0).map(told).collect();
    if !in_use.is_empty() {
        may_destroy(verb, &in_use)?;
    }
    let exchanges = carry_out(verb, &plan, &sights, session).await?;
    report(&sights, &exchanges, "deleted", session)
}

impl Plan {
    async fn new(verb: &Delete, session: &Session) -> anyhow::Result<Self> {
        verb.queue.iter().try_for_each(|name| check_queue_name(name))?;
        let topology = session.config.topology();
        let named = if verb.all { &[][..] } else { &verb.queue };
        let known = known::queues(named, session).await?;
        let counts = known.overview.unwrap_or_default().into_iter();
        let unacked = counts.map(|(name, counts)| (name, counts.messages_unacknowledged)).collect();
        let mut declarations = Vec::new();
        for queue in &known.queues {
            declarations.extend(topology.for_queue(queue, session.manifest.queue_type(queue)));
        }
        declarations.extend(topology.for_ladder(LEVELS - 1));
        declarations.extend(topology.for_events(session.config.kept()));
        let declarations = each_once(declarations);
        let (mut queues, mut exchanges) = (Vec::new(), Vec::new());
        for declaration in &declarations {
            match declaration {
                Declaration::Queue { name, .. } => queues.push(name.clone()),
                Declaration::Exchange { name, .. } => exchanges.push(name.clone()),
                _ => {}
            }
        }
        if verb.all {
            // Whatever leads into another one goes first.
            exchanges.reverse();
        } else if !verb.queue.is_empty() {
            let ours = |queue: &String| [topology.queue(queue), topology.dead_queue(queue)];
            queues = verb.queue.iter().flat_map(ours).collect();
            exchanges.clear();
        } else {
            let prefix = format!("{}.", topology.namespace());
            let foreign = |name: &&String| {
                !name.starts_with(&prefix) && name.as_str() != topology.jobs_exchange()
            };
            if let Some(name) = verb.name.iter().find(foreign) {
                let namespace = topology.namespace();
                let why = format!("`{name}` is not of namespace `{namespace}`: left alone");
                return Err(Stop::Usage(why).into());
            }
            // One name can be both, as `unrouted` and the levels are.
            exchanges.retain(|exchange| verb.name.contains(exchange));
            queues.clone_from(&verb.name);
        }
        Ok(Self { declarations, queues, exchanges, unacked })
    }

    fn bindings_of<'a>(&'a self, queue: &'a str) -> impl Iterator<Item = &'a Declaration> {
        self.declarations.iter().filter(move |declaration| {
            matches!(declaration, Declaration::Binding { to: Target::Queue(to), .. } if to == queue)
        })
    }
}

async fn look(plan: &Plan, session: &Session) -> anyhow::Result<Vec<Sight>> {
    let inspector = Inspector::new(&session.config);
    let mut sights = Vec::new();
    for name in &plan.queues {
        if let Some(count) = session.patiently(inspector.count(name)).await? {
            let unacked = plan.unacked.get(name).copied().unwrap_or(0);
            let (messages, consumers) = (u64::from(count.ready) + unacked, count.consumers.into());
            sights.push(Sight { name: name.clone(), messages, consumers });
        }
    }
    inspector.close().await;
    Ok(sights)
}

fn may_destroy(verb: &Delete, in_use: &[String]) -> Result<(), Stop> {
    let what = in_use.join(", ");
    if !verb.force {
        return Err(Stop::Failed(format!(
            "nothing was deleted, because it would lose messages or take a queue from its \
             consumers: {what}; let workers empty it and stop them, keep dead letters with \
             `forebay dead export`, or give --force"
        )));
    }
    if verb.yes {
        return Ok(());
    }
    let asked = screen::ask(&format!("about to delete {what}; type `delete` to go on:"));
    match asked.map_err(|error| Stop::Failed(format!("cannot ask: {error}")))? {
        Some(answer) if answer == "delete" => Ok(()),
        Some(_) => Err(Stop::Failed("nothing was deleted".to_owned())),
        None => Err(Stop::Usage(format!(
            "about to delete {what}, but nobody is there to ask: give --yes; nothing was deleted"
        ))),
    }
}

/// Returns the exchanges that went; one that others use stays.
async fn carry_out(
    verb: &Delete,
    plan: &Plan,
    sights: &[Sight],
    session: &Session,
) -> anyhow::Result<Vec<String>> {
    let remover = Remover::new(&session.config);
    for (done, sight) in sights.iter().enumerate() {
        if let Err(error) = delete(verb, plan, sight, &remover, session).await {
            if let Err(fault) = bind_again(plan, sight, session).await {
                screen::note(format_args!(
                    "warning: `{}` may have lost its bindings ({fault}); give them back with: \
                     forebay topology apply",
                    sight.name
                ));
            }
            let gone: Vec<_> = sights[..done].iter().map(|sight| sight.name.as_str()).collect();
            if !gone.is_empty() {
                screen::note(format_args!("deleted before that: {}", gone.join(", ")));
            }
            return Err(error);
        }
    }
    let mut gone = Vec::new();
    for exchange in &plan.exchanges {
        match remover.delete_exchange(exchange, verb.all && !verb.force).await {
            Ok(()) => gone.push(exchange.clone()),
            Err(Fault::Mismatch(because)) => {
                screen::note(format_args!("exchange `{exchange}` stays: {because}"));
            }
            Err(fault) => return Err(fault.into()),
        }
    }
    remover.close().await;
    Ok(gone)
}

async fn delete(
    verb: &Delete,
    plan: &Plan,
    sight: &Sight,
    remover: &Remover,
    session: &Session,
) -> anyhow::Result<()> {
    // No more messages come in, so that the second look means something: quorum queues refuse the
    // broker's own if-empty.
    for binding in plan.bindings_of(&sight.name) {
        remover.unbind(binding).await?;
    }
    if !verb.force {
        still_empty(sight, session).await?;
    }
    let went = remover.delete_queue(&sight.name).await?;
    if went > 0 && !verb.force {
        let went = screen::count(went.into(), "message", "messages");
        screen::note(format_args!(
            "warning: {went} came into `{}` in the moment of the delete and are gone",
            sight.name
        ));
    }
    Ok(())
}

/// A queue that stays is as it was.
async fn bind_again(plan: &Plan, sight: &Sight, session: &Session) -> Result<(), TopologyError> {
    let bindings: Vec<_> = plan.bindings_of(&sight.name).cloned().collect();
    let config = session.config.clone().declare(Declare::Auto);
    let declarer = Declarer::new(Link::open(&config, "topology"), &config);
    declarer.apply(&bindings, Instant::now() + session.timeout).await.map(|_| ())
}

async fn still_empty(sight: &Sight, session: &Session) -> anyhow::Result<()> {
    let inspector = Inspector::new(&session.config);
    let count = inspector.count(&sight.name).await?;
    inspector.close().await;
    let Some(count) = count.filter(|count| count.ready + count.consumers > 0) else {
        return Ok(());
    };
    let now = Sight {
        name: sight.name.clone(),
        messages: count.ready.into(),
        consumers: count.consumers.into(),
    };
    let why = format!("it is in use again: {}; it is as it was", told(&now));
    Err(Stop::Failed(why).into())
}

fn told(sight: &Sight) -> String {
    let Sight { name, messages, consumers } = sight;
    let messages = screen::count(*messages, "message", "messages");
    let consumers = screen::count(*consumers, "consumer", "consumers");
    format!("queue `{name}` ({messages}, {consumers})")
}

fn report(
    sights: &[Sight],
    exchanges: &[String],
    done: &str,
    session: &Session,
) -> anyhow::Result<Exit> {
    let messages: u64 = sights.iter().map(|sight| sight.messages).sum();
    if session.for_people() {
        for sight in sights {
            screen::say(told(sight))?;
        }
        for exchange in exchanges {
            screen::say(format_args!("exchange `{exchange}`"))?;
        }
        screen::say(format_args!(
            "{}, {}, {} {done}",
            screen::count(sights.len() as u64, "queue", "queues"),
            screen::count(exchanges.len() as u64, "exchange", "exchanges"),
            screen::count(messages, "message", "messages"),
        ))?;
    } else {
        let queues: Vec<_> = sights
            .iter()
            .map(|sight| json!({ "queue": sight.name, "messages": sight.messages }))
            .collect();
        let deleted = !done.contains("nothing");
        screen::say_json(&json!({ "queues": queues, "exchanges": exchanges, "deleted": deleted }))?;
    }
    Ok(Exit::Fine)
}
