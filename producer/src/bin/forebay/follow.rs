//! `forebay follow`: what happens to a job, to the jobs of a kind, or on a channel.
//! In: whom to follow, and from where. Out: a line for each event, as it comes; with a job, how it
//! ended.

pub(crate) mod line;

use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use forebay_producer::wire::envelope::now_ms;
use forebay_producer::wire::event::check_channel;
use forebay_producer::{
    Event, EventKind, EventLog, Events, Read, Start, Stored, Token, check_kind,
};
use tokio::time::{self, Instant};
use uuid::Uuid;

use crate::exit::{Exit, Stop};
use crate::globals::{Globals, Session};
use crate::{moment, screen};

/// What clocks may differ by.
const SKEW: Duration = Duration::from_secs(60);
/// So long is listened for a redrive after an end that is history.
const ECHO: Duration = Duration::from_millis(500);
/// A person who sees nothing for so long may wonder.
const SILENCE: Duration = Duration::from_secs(3);

/// Show what happens to a job, to the jobs of a kind, or on a channel
#[derive(Args)]
#[command(after_help = "\
A job is followed from its beginning to its end, however long ago that was, as far as events are kept;
a kind and a channel from now on, until Ctrl-C. Only tracked jobs tell all of it: `forebay publish
--track`, or Job::TRACK in Rust. Of other jobs only failures are told.

On a terminal it is a line for people; in a pipe, or with --output json, each line is the event as JSON
(docs/wire.md) with its `token` in front. Give the last token that you have seen to --from, and all
that came after it follows. If it is no longer there, that is said, and what is still kept follows.

Exit code with a job: 0 it succeeded, 1 it is a dead letter.

Examples:
  forebay follow 0199e0a8-7c00-7000-8000-000000000001
  forebay follow --kind report.render
  forebay follow --channel orders --from beginning | jq .data
  forebay follow --channel orders --from 10m")]
pub(crate) struct Follow {
    /// The job's id
    #[arg(value_name = "JOB", required_unless_present_any = ["channel", "kind"])]
    job: Option<String>,

    /// What handlers tell this channel
    #[arg(long, value_name = "NAME", conflicts_with_all = ["job", "kind"])]
    channel: Option<String>,

    /// The jobs of this kind
    #[arg(long, value_name = "KIND", conflicts_with = "job")]
    kind: Option<String>,

    /// Begin after this token, at the beginning of what is kept, or so long ago: 10m
    #[arg(long, value_name = "TOKEN|beginning|DURATION", value_parser = from)]
    from: Option<From>,
}

/// Where to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    Beginning,
    After(Token),
    Ago(Duration),
}

fn from(text: &str) -> Result<From, String> {
    if text == "beginning" {
        return Ok(From::Beginning);
    }
    if let Ok(token) = text.parse() {
        return Ok(From::After(token));
    }
    let like = "write a token like 4711.0199e0a8-7c00-7000-8000-000000000001, `beginning`, or a \
                duration like 10m";
    moment::wait(text).map(From::Ago).map_err(|_| like.to_owned())
}

/// Whom to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whom {
    Job(String),
    Kind(String),
    Channel(String),
}

impl Whom {
    fn is_meant(&self, event: &Event) -> bool {
        let of_job = event.what.is_of_job();
        match self {
            Self::Job(id) => of_job && event.subject == *id,
            Self::Kind(kind) => of_job && event.kind.as_deref() == Some(kind),
            Self::Channel(channel) => event.channel() == Some(channel),
        }
    }

    /// Where to begin, unless somebody says otherwise: a job's id mostly says when it was made.
    fn beginning(&self) -> Start {
        match self {
            Self::Job(id) => made_at(id).map_or(Start::First, |time| Start::Since(time - SKEW)),
            Self::Kind(_) | Self::Channel(_) => Start::Next,
        }
    }
}

fn made_at(id: &str) -> Option<SystemTime> {
    let id = Uuid::try_parse(id).ok().filter(|id| id.get_version_num() == 7)?;
    let (seconds, _) = id.get_timestamp()?.to_unix();
    // One that is told to come from before the epoch, or long after, was not made by a clock.
    let plausible = (SKEW.as_secs()..now_ms() / 1000 + SKEW.as_secs()).contains(&seconds);
    plausible.then(|| UNIX_EPOCH + Duration::from_secs(seconds))
}

pub(crate) async fn run(
    verb: Follow,
    session: &Session,
    globals: &Globals,
) -> anyhow::Result<Exit> {
    let whom = match (verb.job, verb.kind, verb.channel) {
        (Some(job), ..) => Whom::Job(job),
        (_, Some(kind), _) => {
            check_kind(&kind)?;
            Whom::Kind(kind)
        }
        (.., Some(channel)) => {
            check_channel(&channel)?;
            Whom::Channel(channel)
        }
        (None, None, None) => return Err(Stop::Usage("give a job's id".to_owned()).into()),
    };
    let start = match verb.from {
        None => whom.beginning(),
        Some(From::Beginning) => Start::First,
        Some(From::After(token)) => Start::After(token),
        Some(From::Ago(time)) => {
            Start::Since(SystemTime::now().checked_sub(time).unwrap_or(UNIX_EPOCH))
        }
    };
    let lines = for_people(session, globals);
    let mut following = Following::begin(whom, start, session).await?;
    let show = |stored: &Stored, whom: &Whom| screen::say(line::shown(stored, whom, lines));
    let end = following.until_end(show).await?;
    Ok(if end.what == EventKind::Succeeded { Exit::Fine } else { Exit::Failed })
}

/// Whether lines are for people: unless it was said, the terminal decides.
pub(crate) fn for_people(session: &Session, globals: &Globals) -> bool {
    let said = globals.origin("output").is_some();
    session.for_people() && (said || io::stdout().is_terminal())
}

/// Somebody who is followed.
pub(crate) struct Following {
    whom: Whom,
    events: Events,
    began_ms: u64,
}

impl Following {
    /// Returns when nothing that happens from now on is missed.
    pub(crate) async fn begin(whom: Whom, start: Start, session: &Session) -> anyhow::Result<Self> {
        let log = EventLog::new(&session.config);
        let connected = log.link().connected(Instant::now() + session.timeout);
        session.patiently(connected).await?;
        let events = log.read(start).await?;
        Ok(Self { whom, events, began_ms: now_ms() })
    }

    /// Follows this one from here on.
    pub(crate) fn turn_to(&mut self, whom: Whom) {
        self.whom = whom;
    }

    /// Shows each event. Returns with a job's last one; where no job is followed, never.
    ///
    /// An end that is history may have been followed by a redrive: it is the end if nothing of the
    /// job comes after it.
    pub(crate) async fn until_end(
        &mut self,
        mut show: impl FnMut(&Stored, &Whom) -> Result<(), Stop>,
    ) -> anyhow::Result<Event> {
        let mut end: Option<Event> = None;
        let mut wondered = false;
        loop {
            let patience = if end.is_some() { ECHO } else { SILENCE };
            let Ok(next) = time::timeout(patience, self.events.next()).await else {
                match end {
                    Some(end) => return Ok(end),
                    None if !std::mem::replace(&mut wondered, true) => self.wonder(),
                    None => {}
                }
                continue;
            };
            let stored = match next? {
                Read::Event(stored) => stored,
                Read::Gap(gap) => {
                    screen::note(line::gap(gap));
                    continue;
                }
                _ => continue,
            };
            let event = &stored.event;
            let is_now = event.time_ms >= self.began_ms;
            if self.whom.is_meant(event) {
                wondered = true;
                show(&stored, &self.whom)?;
                let ends = event.what.is_final() && matches!(self.whom, Whom::Job(_));
                end = ends.then(|| event.clone());
            }
            if is_now && let Some(end) = end.take() {
                return Ok(end);
            }
        }
    }

    fn wonder(&self) {
        if let Whom::Job(id) = &self.whom {
            let id = screen::printable(id);
            screen::aside(format_args!(
                "nothing is known of job {id} yet; only tracked jobs tell all that happens to them \
                 (forebay publish --track). Ctrl-C ends it"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_is_a_token_the_beginning_or_a_duration() {
        assert_eq!(from("beginning"), Ok(From::Beginning));
        assert_eq!(from("10m"), Ok(From::Ago(Duration::from_secs(600))));
        assert_eq!(from("0.-"), Ok(From::After(Token::BEGINNING)));
        let token = "4711.0199e0a8-7c00-7000-8000-000000000001";
        assert_eq!(from(token), Ok(From::After(token.parse().unwrap())));
        assert!(from("yesterday").unwrap_err().contains("`beginning`"));
    }

    #[test]
    fn an_id_that_says_when_it_was_made_is_believed_if_that_can_be() {
        let time = made_at("0199e0a8-7c00-7000-8000-000000000001").unwrap();
        assert!(time > UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        for id in ["order-4711", "ffffffff-ffff-7fff-8000-000000000001", &Uuid::nil().to_string()] {
            assert_eq!(made_at(id), None, "{id}");
        }
        assert_eq!(Whom::Job("order-4711".to_owned()).beginning(), Start::First);
    }
}
