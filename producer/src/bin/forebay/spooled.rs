//! Publishing with a spool: what waits there goes first, and what the broker cannot take now is kept.
//! In: a job and a folder. Out: it is at the broker, or on the disk under the same id.

use anyhow::Context;
use forebay_producer::Producer;
use tokio::time::Instant;

use crate::globals::Session;
use crate::order::{Made, Order};
use crate::screen;
use crate::spool::folder::Folder;
use crate::spool::sender::Sent;
use crate::spool::trouble::{self, Waits};
use crate::spool::{self, flush_command, sender};

/// Publishes a job, or keeps it. Returns why it was kept.
///
/// # Errors
/// The job is in neither place, unless the error says otherwise.
pub(crate) async fn one(
    order: &Order,
    made: &Made,
    folder: &Folder,
    session: &Session,
) -> anyhow::Result<Option<String>> {
    let producer = Producer::new(&session.config);
    producer.check(&made.envelope)?;
    let tried = session.patiently(published(made, folder, &producer, session)).await;
    producer.close().await;
    match tried {
        Ok(()) => Ok(None),
        Err(error) if trouble::is_passing(&error) => {
            let because = trouble::because(&error);
            if let Err(why) = folder.append(&[order.keep(made)]) {
                let id = &made.envelope.id;
                return Err(error).context(format!("job {id} is not spooled either: {why}"));
            }
            Ok(Some(because))
        }
        Err(error) => Err(error),
    }
}

async fn published(
    made: &Made,
    folder: &Folder,
    producer: &Producer,
    session: &Session,
) -> anyhow::Result<()> {
    ahead(folder, producer, &made.envelope.queue, session).await?;
    let deadline = Instant::now() + session.timeout;
    let connected = producer.link().connected(deadline);
    tokio::select! {
        biased;
        // Cancel-safe: it only watches. First, so that at the deadline its words are heard.
        Err(error) = connected => Err(error.into()),
        sent = made.send(producer, deadline) => Ok(sent?),
    }
}

/// Sends what waits in the spool, before anything new for `queue`.
///
/// # Errors
/// Why nothing new is to be published now.
pub(crate) async fn ahead(
    folder: &Folder,
    producer: &Producer,
    queue: &str,
    session: &Session,
) -> anyhow::Result<()> {
    if folder.is_empty() {
        return Ok(());
    }
    let deadline = Instant::now() + session.timeout;
    let locked = folder.lock_for_sending(deadline).await?.ok_or(Waits::Behind)?;
    if folder.is_empty() {
        return Ok(());
    }
    producer.link().connected(Instant::now() + session.timeout).await?;
    let sent = sender::send(folder, &locked, producer, "", session).await?;
    drop(locked);
    told(&sent, folder, session);
    if let Some(error) = sent.stopped {
        return Err(error);
    }
    if sent.stuck.contains(queue) {
        return Err(Waits::Stuck { queue: queue.to_owned() }.into());
    }
    Ok(())
}

fn told(sent: &Sent, folder: &Folder, session: &Session) {
    let folder = folder.path().display();
    if sent.sent > 0 {
        let jobs = screen::count(sent.sent, "job", "jobs");
        screen::note(format_args!("{jobs} from the spool {folder} sent first"));
    }
    if sent.left > 0 && sent.stopped.is_none() {
        let jobs = screen::count(sent.left, "job stays", "jobs stay");
        screen::note(format_args!("{jobs} in the spool {folder}"));
    }
    spool::tell_the_rest(sent, session);
}

/// Says that jobs are kept, why, and what sends them.
pub(crate) fn say(what: &str, because: &str, folder: &Folder) {
    screen::note(format_args!(
        "spooled: {what} not yet at the broker ({because}); `{}`, or the next publish with this \
         --spool, sends it",
        flush_command(folder.path())
    ));
}
