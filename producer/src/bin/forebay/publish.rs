//! `forebay publish`: one job from the command line, or one for each line of a file.
//! In: kind, payload, options. Out: the id, queue and delay of a confirmed job.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use forebay_producer::{Delay, Producer, PublishOptions, Receipt, TraceContext};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::awaited::{self, Until};
use crate::bulk::{self, Bulk, Shape};
use crate::exit::{Exit, Stop};
use crate::globals::{Globals, Session};
use crate::moment::{self, Expiry};
use crate::order::{Earliest, Made, Order};
use crate::spool::folder::Folder;
use crate::template::{self, Template};
use crate::{follow, screen, spool, spooled};

const HOW: &str = "give it as '{\"to\": \"ada@example.org\"}' in single quotes, or as - to read it \
                   from standard input; a job without data is '{}'";

/// Publish a job, or one for each line of a file
#[derive(Args)]
#[command(after_help = "\
It returns once the broker has confirmed that the job is stored on its queue.

Examples:
  forebay publish email.send '{\"to\": \"ada@example.org\"}' --queue mail
  forebay publish report.render - < report.json
  forebay publish email.send '{\"to\": \"bob@example.org\"}' --delay 5m --expires 1h
  forebay publish year.close '{}' --at 2026-12-31T23:00:00Z
  forebay publish email.send --jsonl mails.jsonl
  find ~/pictures -name '*.jpg' | forebay publish file.digest --lines
  forebay publish page.fetch --lines urls.txt --template '{\"url\": \"{}\"}'

With --track, and with --wait and --follow, which imply it, what happens to the job is told as events.
--wait and --follow end when the job has ended, with exit code 0 if it succeeded and 1 if it is a dead
letter; such a job is not spooled.
  forebay publish report.render '{\"month\": 5}' --wait=5m
  forebay publish report.render '{\"month\": 5}' --follow

A bulk publish that stops says from which line to continue; continue with --from-line.

With --spool, jobs that the broker cannot take now (out of reach, blocked by an alarm, queue full, no
confirm in time) are written to disk, under the id that they keep, and the program ends with 0.
`forebay spool flush` or the next publish with --spool sends them, before new ones. What somebody
has to mend, such as a wrong password or a missing queue, is an error as ever, and nothing is
spooled. A delay and an expiry count from now, not from when it is sent.
  forebay publish email.send '{\"to\": \"ada@example.org\"}' --spool /var/spool/forebay")]
pub(crate) struct Publish {
    /// Names the function that is to handle the job: noun.verb
    kind: String,

    /// The job's data; - or nothing reads it from standard input
    #[arg(value_name = "JSON", allow_negative_numbers = true)]
    payload: Option<String>,

    /// One job for each line of the file, which is its JSON; - is standard input
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["payload", "lines"],
        help_heading = "Many jobs"
    )]
    jsonl: Option<PathBuf>,

    /// One job for each line of the file or of standard input, put into a template
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = "-",
        conflicts_with = "payload",
        help_heading = "Many jobs"
    )]
    lines: Option<PathBuf>,

    /// With --lines: JSON in which {} inside a string is the line [default: {"path": "{}"}]
    #[arg(
        long,
        value_name = "JSON",
        requires = "lines",
        default_value = template::PATH,
        hide_default_value = true,
        value_parser = Template::parse,
        help_heading = "Many jobs"
    )]
    template: Template,

    /// Begin at this line, counted from 1: where an earlier run stopped
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Many jobs"
    )]
    from_line: Option<u64>,

    /// Leave out so many lines at the beginning
    #[arg(long, value_name = "N", conflicts_with = "from_line", help_heading = "Many jobs")]
    skip: Option<u64>,

    /// The queue [default: the manifest's for this kind, else `default`]
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,

    /// Run it no earlier than in so long: 30s, 5m, 1h30m
    #[arg(long, value_name = "DURATION", value_parser = moment::duration)]
    delay: Option<Duration>,

    /// Run it no earlier than then: 2026-12-01T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment::date, conflicts_with = "delay")]
    at: Option<SystemTime>,

    /// Do not run it later than that, a duration or a time: it becomes a dead letter
    #[arg(long, value_name = "WHEN", value_parser = moment::expiry)]
    expires: Option<Expiry>,

    /// Its id [default: a new one]
    #[arg(long, value_name = "ID", conflicts_with_all = ["jsonl", "lines"])]
    id: Option<String>,

    /// Names the piece of work, for handlers that must do it once
    #[arg(long, value_name = "KEY", conflicts_with_all = ["jsonl", "lines"])]
    key: Option<String>,

    /// A header that stays on the job; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    header: Vec<(String, String)>,

    /// AMQP priority, for queues that have priorities
    #[arg(long, value_name = "0-255")]
    priority: Option<u8>,

    /// Keep the job in this folder when the broker cannot take it now, and send first what lies
    /// there
    #[arg(long, env = "FOREBAY_SPOOL", hide_env_values = true, value_name = "DIR")]
    spool: Option<OsString>,

    /// Tell what happens to it as events, for `forebay follow` and the gateway
    #[arg(long, help_heading = "What becomes of it")]
    track: bool,

    /// Say whose job it is: a user or a tenant, who alone is shown its events by the gateway
    #[arg(long, value_name = "NAME", help_heading = "What becomes of it")]
    owner: Option<String>,

    /// Wait until it has ended and show its result, for at most so long if that is said: --wait=30s
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        require_equals = true,
        value_parser = moment::wait,
        conflicts_with_all = ["jsonl", "lines"],
        help_heading = "What becomes of it"
    )]
    wait: Option<Option<Duration>>,

    /// Show all that happens to it until it has ended
    #[arg(
        long,
        conflicts_with_all = ["jsonl", "lines", "wait"],
        help_heading = "What becomes of it"
    )]
    follow: bool,

    /// The trace it belongs to, by W3C Trace Context [default: TRACEPARENT and TRACESTATE, if set]
    #[arg(long, value_name = "TRACEPARENT", value_parser = TraceContext::parse)]
    traceparent: Option<TraceContext>,
}

pub(crate) async fn run(
    verb: Publish,
    session: &Session,
    globals: &Globals,
) -> anyhow::Result<Exit> {
    verb.check_times(SystemTime::now())?;
    if verb.queue.is_none() && session.manifest.lacks(&verb.kind) {
        screen::note(unknown(&verb.kind, session.manifest.nearest(&verb.kind)));
    }
    if let Some(queue) = verb.queue.as_deref() {
        let manifest = &session.manifest;
        if !manifest.queue_names().is_empty() && !manifest.has_queue(queue) {
            screen::note(format_args!(
                "note: the manifest has no queue `{queue}`: `forebay run` does not consume it"
            ));
        }
    }
    let order = verb.order(session);
    let spool = spool::chosen(verb.spool.as_deref());
    let from_line = verb.from_line.or(verb.skip.map(|lines| lines.saturating_add(1)));
    let (source, shape) = match (verb.jsonl, verb.lines) {
        (Some(source), _) => (source, Shape::Json),
        (None, Some(source)) => (source, Shape::Template(verb.template)),
        (None, None) if from_line.is_some() => {
            let only = "--from-line and --skip go with --jsonl or --lines".to_owned();
            return Err(Stop::Usage(only).into());
        }
        (None, None) => {
            let until = match verb.wait {
                Some(within) => Some(Until::Ended { within }),
                None if verb.follow => {
                    Some(Until::Followed { people: follow::for_people(session, globals) })
                }
                None => None,
            };
            return one(&order, verb.payload, spool, until, session).await;
        }
    };
    let from_line = from_line.unwrap_or(1);
    bulk::run(Bulk { order, source, shape, from_line, spool }, session).await
}

impl Publish {
    /// A job that expires before it may run is a mistake, and a silent one.
    fn check_times(&self, now: SystemTime) -> Result<(), Stop> {
        let runs = self.at.unwrap_or(now + self.delay.unwrap_or_default());
        let expires = match self.expires {
            Some(Expiry::After(time)) => now + time,
            Some(Expiry::At(time)) => time,
            None => return Ok(()),
        };
        if expires > runs.max(now) {
            return Ok(());
        }
        let why = "the job would expire before it may run: --expires counts from now";
        Err(Stop::Usage(why.to_owned()))
    }

    fn order(&self, session: &Session) -> Order {
        Order {
            kind: self.kind.clone(),
            options: self.options(session),
            earliest: self.delay.map(Earliest::After).or(self.at.map(Earliest::At)),
            config: session.config.clone(),
            run: format!("{:016x}", fastrand::u64(..)),
        }
    }

    fn options(&self, session: &Session) -> PublishOptions {
        let manifest = session.manifest.queue_of(&self.kind);
        let mut options =
            PublishOptions::new().queue(choose_queue(self.queue.as_deref(), manifest));
        if let Some(delay) = self.delay {
            options = options.delay(delay);
        }
        if let Some(time) = self.at {
            options = options.run_at(time);
        }
        options = match self.expires {
            Some(Expiry::After(time)) => options.expires_after(time),
            Some(Expiry::At(time)) => options.expires_at(time),
            None => options,
        };
        if let Some(id) = &self.id {
            options = options.id(id);
        }
        if let Some(key) = &self.key {
            options = options.idempotency_key(key);
        }
        if self.track {
            options = options.track(true);
        }
        if let Some(owner) = &self.owner {
            options = options.owner(owner);
        }
        if let Some(priority) = self.priority {
            options = options.priority(priority);
        }
        if let Some(trace) = self.traceparent.clone().or_else(trace_of_environment) {
            options = options.traceparent(trace.traceparent());
            options = trace.tracestate().into_iter().fold(options, PublishOptions::tracestate);
        }
        self.header.iter().fold(options, |options, (name, value)| options.header(name, value))
    }
}

async fn one(
    order: &Order,
    payload: Option<String>,
    spool: Option<&Path>,
    until: Option<Until>,
    session: &Session,
) -> anyhow::Result<Exit> {
    let payload = read_payload(payload)?;
    check_json(&payload)?;
    if let Some(until) = until {
        // The variable of the spool may be set for other calls: this one wants the job now.
        let options = order.options.clone();
        return awaited::one(&order.kind, payload, options, until, session).await;
    }
    if let Some(spool) = spool {
        let (folder, made) = (Folder::create(spool)?, order.make(payload)?);
        let because = spooled::one(order, &made, &folder, session).await?;
        let Made { envelope, delay, .. } = &made;
        receipt(
            &envelope.id,
            &envelope.queue,
            delay.map(Delay::duration),
            because.as_deref(),
            session,
        )?;
        if let Some(because) = because {
            spooled::say("the job is", &because, &folder);
        }
        return Ok(Exit::Fine);
    }
    let producer = Producer::new(&session.config);
    let (kind, options) = (&order.kind, order.options.clone());
    let published =
        session.patiently(confirmed(&producer, kind, payload, options, session)).await?;
    producer.close().await;
    receipt(&published.id, &published.queue, published.delay, None, session)?;
    Ok(Exit::Fine)
}

/// Publishes, and ends as soon as it is known that there will be no connection: the publish itself
/// would go on hoping until its deadline.
pub(crate) async fn confirmed(
    producer: &Producer,
    kind: &str,
    payload: String,
    options: PublishOptions,
    session: &Session,
) -> anyhow::Result<Receipt> {
    let link = producer.link();
    let connected = link.connected(Instant::now() + session.timeout);
    tokio::select! {
        biased;
        // Cancel-safe: it only watches. First, so that at the deadline its words are heard.
        Err(error) = connected => Err(error.into()),
        receipt = producer.publish_raw(kind, payload, options) => Ok(receipt?),
    }
}

fn read_payload(given: Option<String>) -> anyhow::Result<String> {
    let given = given.filter(|given| given != "-");
    if let Some(payload) = given {
        return Ok(payload);
    }
    if io::stdin().is_terminal() {
        return Err(Stop::Usage(format!("the job has no data: {HOW}")).into());
    }
    let mut payload = String::new();
    let read = io::stdin().read_to_string(&mut payload);
    read.map_err(|error| Stop::Usage(error.to_string())).context("cannot read standard input")?;
    if payload.trim().is_empty() {
        return Err(Stop::Usage(format!("standard input is empty: {HOW}")).into());
    }
    Ok(payload)
}

fn check_json(payload: &str) -> Result<(), Stop> {
    match serde_json::from_str::<Value>(payload) {
        Ok(_) => Ok(()),
        Err(why) => Err(Stop::Usage(format!("the job's data is not JSON: {why}; {HOW}"))),
    }
}

pub(crate) fn receipt(
    id: &str,
    queue: &str,
    delay: Option<Duration>,
    spooled: Option<&str>,
    session: &Session,
) -> Result<(), Stop> {
    if session.for_people() {
        let delay = delay.map_or_else(|| "none".to_owned(), moment::short);
        screen::say_table(["id", "queue", "delay"], [[id.to_owned(), queue.to_owned(), delay]])
    } else {
        let delay_ms = delay.map(|delay| delay.as_millis() as u64);
        screen::say_json(&json!({
            "id": id,
            "queue": queue,
            "delay_ms": delay_ms,
            "spooled": spooled.is_some(),
            "because": spooled,
        }))
    }
}

/// No error: a worker in Rust may have a handler for it, which the manifest does not know.
fn unknown(kind: &str, nearest: Option<&str>) -> String {
    let meant = nearest.map_or_else(String::new, |kind| format!("; did you mean `{kind}`?"));
    format!("note: the manifest has no function `{kind}`, it goes to queue `default`{meant}")
}

fn choose_queue(flag: Option<&str>, manifest: Option<&str>) -> String {
    flag.or(manifest).unwrap_or("default").to_owned()
}

/// Build tools tell their children by these variables which trace they are part of. What they say
/// is no reason not to publish a job.
fn trace_of_environment() -> Option<TraceContext> {
    let [parent, state] = ["TRACEPARENT", "TRACESTATE"].map(|name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(|v| v.to_string_lossy().into_owned())
    });
    let trace = match TraceContext::parse(&parent?) {
        Ok(trace) => trace.with_state(state.as_deref().unwrap_or_default()),
        Err(error) => {
            screen::note(format_args!("the variable TRACEPARENT is left out: {error}"));
            return None;
        }
    };
    if state.is_some() && trace.tracestate().is_none() {
        screen::note("the variable TRACESTATE is left out: it is no list of key=value");
    }
    Some(trace)
}

/// `name=value`; the value may have further equals signs, or be empty.
fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it like tenant=acme".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_split_at_its_first_equals_sign() {
        assert_eq!(header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(header("a="), Ok(("a".to_owned(), String::new())));
        assert!(header("a").is_err() && header("=a").is_err());
    }

    #[test]
    fn the_queue_is_the_flag_then_the_manifest_then_default() {
        assert_eq!(choose_queue(Some("flag"), Some("manifest")), "flag");
        assert_eq!(choose_queue(None, Some("manifest")), "manifest");
        assert_eq!(choose_queue(None, None), "default");
    }

    #[test]
    fn bad_json_is_refused_with_its_place_and_the_remedy() {
        let error = check_json("{to: 1}").unwrap_err().to_string();
        assert!(error.contains("line 1 column 2") && error.contains("single quotes"), "{error}");
        assert!(check_json("-5").is_ok());
    }
}
