//! `forebay publish --wait` and `--follow`: a job that somebody waits for.
//! In: a job, and how it is waited for. Out: it is published, what happens to it is shown, and its
//! end decides the exit code.

use std::time::Duration;

use forebay_producer::{Event, EventKind, Producer, PublishOptions, Receipt, Start};
use serde_json::{Value, json};
use tokio::time;

use crate::exit::{Exit, Stop};
use crate::follow::{Following, Whom, line};
use crate::globals::Session;
use crate::publish::{confirmed, receipt};
use crate::screen;

/// How a job is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// Shows all that happens to it, for people or for programs.
    Followed { people: bool },
    /// Shows how it ended, within this time if there is one.
    Ended { within: Option<Duration> },
}

/// Publishes a job and stays with it until it has ended.
pub(crate) async fn one(
    kind: &str,
    payload: String,
    options: PublishOptions,
    until: Until,
    session: &Session,
) -> anyhow::Result<Exit> {
    // Before it is published, so that nothing of it is missed.
    let nobody = Whom::Job(String::new());
    let mut following = Following::begin(nobody, Start::Next, session).await?;
    let producer = Producer::new(&session.config);
    let published = confirmed(&producer, kind, payload, options.track(true), session);
    let job = session.patiently(published).await?;
    producer.close().await;
    following.turn_to(Whom::Job(job.id.clone()));
    let end = match until {
        Until::Followed { people } => {
            screen::aside(format_args!("job {}", job.id));
            following
                .until_end(|stored, whom| screen::say(line::shown(stored, whom, people)))
                .await?
        }
        Until::Ended { within } => {
            if session.for_people() {
                receipt(&job.id, &job.queue, job.delay, None, session)?;
            }
            let end = following.until_end(|_, _| Ok(()));
            let end = match within {
                Some(within) => time::timeout(within, end).await.map_err(|_| late(&job, within))?,
                None => end.await,
            }?;
            show(&job, &end, session)?;
            end
        }
    };
    Ok(if end.what == EventKind::Succeeded { Exit::Fine } else { Exit::Failed })
}

fn show(job: &Receipt, end: &Event, session: &Session) -> Result<(), Stop> {
    let word = end.what.word();
    if session.for_people() {
        return screen::say(screen::printable(&format!("{word}: {}", line::detail(end))));
    }
    let mut shown = json!({
        "id": job.id,
        "queue": job.queue,
        "delay_ms": job.delay.map(|delay| delay.as_millis() as u64),
        "state": word,
        "attempt": end.attempt,
    });
    // The fields of its data: `result` or `bytes`, `reason` and `error`.
    if let (Some(shown), Ok(Value::Object(data))) =
        (shown.as_object_mut(), serde_json::from_str(end.data.get()))
    {
        shown.extend(data);
    }
    screen::say_json(&shown)
}

fn late(job: &Receipt, within: Duration) -> Stop {
    let within = humantime::format_duration(within);
    let id = screen::quoted(&job.id);
    Stop::Failed(format!(
        "job {id} has not ended within {within}; it goes on, and `forebay follow {id}` waits for it"
    ))
}
