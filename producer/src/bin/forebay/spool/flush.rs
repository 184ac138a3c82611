//! `forebay spool flush`: sends what waits in a spool.
//! In: a folder, and a broker. Out: counts; what is not sent is still there, and why is told.

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::sender::{self, Sent};
use super::{Place, tell_the_rest};
use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::screen;

/// Send what waits in a spool, oldest first
#[derive(Args)]
#[command(after_help = "\
A job is removed once the broker has confirmed it. --timeout is how long it waits for the broker:
with --timeout 1day it waits until the broker is there again, and then sends.

Examples:
  forebay spool flush --spool /var/spool/forebay
  forebay spool flush --timeout 1day

Exit codes: 0 nothing is left, 1 the broker does not want some of them, 3 it is out of reach.")]
pub(crate) struct Flush {
    #[command(flatten)]
    place: Place,
}

pub(super) async fn run(verb: &Flush, session: &Session) -> anyhow::Result<Exit> {
    let folder = verb.place.folder()?;
    let Some(locked) = folder.lock_for_sending(Instant::now() + session.timeout).await? else {
        let why = "another process sends the jobs of this spool; wait for it, or for longer with \
                   --timeout";
        return Err(Stop::Failed(why.to_owned()).into());
    };
    let sent = if folder.is_empty() {
        Sent::default()
    } else {
        let producer = session.producer().await?;
        let sent = sender::send(&folder, &locked, &producer, "", session).await?;
        producer.close().await;
        sent
    };
    drop(locked);
    if session.for_people() {
        let jobs = screen::count(sent.sent, "job", "jobs");
        screen::say(format_args!("{jobs} sent, {} left", screen::thousands(sent.left)))?;
    } else {
        screen::say_json(&json!({
            "sent": sent.sent,
            "left": sent.left,
            "unwanted": sent.unwanted,
            "other_namespaces": sent.foreign,
        }))?;
    }
    tell_the_rest(&sent, session);
    match sent.stopped {
        Some(error) => Err(error),
        None if sent.left == 0 => Ok(Exit::Fine),
        None => Ok(Exit::Failed),
    }
}
