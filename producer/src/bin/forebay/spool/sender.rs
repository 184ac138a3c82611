//! Sends what waits in a spool.
//! In: a folder that nobody else sends from. Out: its jobs are at the broker and marked, oldest
//! first; those that are not are still there, and named if the broker does not want them.

use std::collections::BTreeSet;
use std::io;

use forebay_producer::link::after;
use forebay_producer::wire::envelope::now_ms;
use forebay_producer::{Producer, PublishError, TopologyError};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::signal;

use super::folder::{Folder, Locked, Marker, unwritable};
use super::record::Kept;
use super::scan::Piece;
use super::trouble;
use crate::exit::{self, Stop};
use crate::globals::Session;
use crate::screen;

/// Jobs of one run in flight.
const WINDOW: usize = 1_000;
/// Bytes in flight; one job may go beyond it.
const WINDOW_BYTES: usize = 32 * 1024 * 1024;
/// So many are named that the broker does not want.
const MOST_NAMED: u64 = 20;

/// How it went.
#[derive(Default)]
pub(crate) struct Sent {
    /// Confirmed, and out of the spool.
    pub(crate) sent: u64,
    /// Of these, those of the run that was asked for.
    pub(crate) of_run: u64,
    /// What lies in the spool now.
    pub(crate) left: u64,
    /// Of these, those that the broker does not want, now or ever.
    pub(crate) unwanted: u64,
    /// Of these, those of other namespaces.
    pub(crate) foreign: u64,
    /// Queues that take nothing now: their later jobs were not tried.
    pub(crate) stuck: BTreeSet<String>,
    /// Why it ended before the end.
    pub(crate) stopped: Option<anyhow::Error>,
}

/// Sends all that wait, in their order: jobs of one run go out together, as they would have without
/// a spool, those of the next run once all of them are confirmed. A queue that does not take its
/// jobs holds up no other.
pub(crate) async fn send(
    folder: &Folder,
    _locked: &Locked,
    producer: &Producer,
    run: &str,
    session: &Session,
) -> Result<Sent, Stop> {
    folder.repair()?;
    if folder.is_empty() {
        return Ok(Sent::default());
    }
    let total = folder.scan()?.filter(|piece| matches!(piece, Ok(Piece::Job { sent: false, .. })));
    let bar = screen::progress(Some(total.count() as u64));
    let mut sending = Sending {
        folder,
        marker: folder.marker()?,
        run: run.to_owned(),
        namespace: session.config.topology().namespace().to_owned(),
        trouble: Box::new(|| !producer.link().trouble().is_empty()),
        bar,
        result: Sent::default(),
    };
    let mut pieces = folder.scan()?;
    let mut next: Option<(u64, Kept)> = None;
    let mut flying = FuturesUnordered::new();
    let (mut flying_run, mut bytes) = (String::new(), 0);
    let mut ctrl_c = std::pin::pin!(signal::ctrl_c());
    loop {
        while next.is_none() && sending.result.stopped.is_none() {
            let Some(piece) = pieces.next() else { break };
            next = sending.job(piece.map_err(|error| folder.unreadable(&error))?);
        }
        if sending.result.stopped.is_some() {
            next = None;
        }
        // The one before may have been refused since it was chosen.
        if next.take_if(|(_, kept)| sending.result.stuck.contains(&kept.queue)).is_some() {
            continue;
        }
        let together = |kept: &Kept| flying.is_empty() || kept.run == flying_run;
        let room = flying.len() < WINDOW && bytes < WINDOW_BYTES;
        if let Some((at, kept)) = next.take_if(|(_, kept)| room && together(kept)) {
            flying_run.clone_from(&kept.run);
            let (queue, size) = (kept.queue.clone(), kept.payload.len());
            bytes += size;
            let of_run = kept.run == sending.run;
            let deadline = after(session.timeout);
            flying.push(async move {
                let sent = match kept.restore(now_ms()) {
                    Ok((envelope, to)) => {
                        let sent = producer.send(&envelope, to, deadline).await;
                        if sent.is_ok() {
                            producer.tell_queued(&envelope, to).await;
                        }
                        sent
                    }
                    Err(error) => Err(error),
                };
                (at, queue, size, of_run, sent)
            });
            continue;
        }
        tokio::select! {
            biased;
            // Cancel-safe: the handler stays installed.
            _ = &mut ctrl_c, if sending.result.stopped.is_none() => {
                let why = "interrupted; what is not sent is still in the spool".to_owned();
                sending.result.stopped = Some(Stop::Failed(why).into());
            }
            // Cancel-safe: what has not ended stays in the set.
            landed = flying.next() => {
                let Some((at, queue, size, of_run, sent)) = landed else { break };
                bytes -= size;
                sending.landed(at, &queue, of_run, sent)?;
            }
        }
    }
    sending.bar.finish_and_clear();
    let mut result = sending.result;
    result.left = folder.tidy()?;
    Ok(result)
}

struct Sending<'a> {
    folder: &'a Folder,
    marker: Marker,
    run: String,
    namespace: String,
    /// Whether it is the broker, and not only one queue.
    trouble: Box<dyn Fn() -> bool + 'a>,
    bar: indicatif::ProgressBar,
    result: Sent,
}

impl Sending<'_> {
    /// The job of a piece, if it is one to be sent now, and where it stands.
    fn job(&mut self, piece: Piece) -> Option<(u64, Kept)> {
        let Piece::Job { range, sent: false, kept } = piece else { return None };
        if kept.namespace != self.namespace {
            self.result.foreign += 1;
            return None;
        }
        // What comes later must not overtake it.
        (!self.result.stuck.contains(&kept.queue)).then_some((range.start, *kept))
    }

    fn landed(
        &mut self,
        at: u64,
        queue: &str,
        of_run: bool,
        sent: Result<(), PublishError>,
    ) -> Result<(), Stop> {
        match sent {
            Ok(()) => {
                let marked: io::Result<()> = self.marker.sent(at);
                marked.map_err(|error| unwritable(&self.folder.file(), &error))?;
                self.result.sent += 1;
                self.result.of_run += u64::from(of_run);
                self.bar.inc(1);
            }
            Err(error) if passes_by_itself(&error) => {
                self.result.stuck.insert(queue.to_owned());
                if (self.trouble)() || self.result.stopped.is_some() {
                    self.result.stopped.get_or_insert_with(|| error.into());
                } else {
                    let because = trouble::because(&error.into());
                    self.name(&format!("a job for queue `{queue}`: {because}"));
                }
            }
            Err(error) => self.name(&exit::sentence(&error.into())),
        }
        Ok(())
    }

    fn name(&mut self, why: &str) {
        self.result.unwanted += 1;
        if self.result.unwanted <= MOST_NAMED {
            self.bar.suspend(|| screen::note(format_args!("stays in the spool: {why}")));
        }
    }
}

/// Whether the broker may take the job later although nobody has mended anything: what a spool is
/// for. Anything else is a mistake, and whoever made it wants to know.
pub(crate) fn passes_by_itself(error: &PublishError) -> bool {
    match error {
        PublishError::Unconfirmed { .. } | PublishError::Refused { .. } => true,
        PublishError::Topology { source, .. } => {
            matches!(**source, TopologyError::Broker { .. } | TopologyError::Connect(_))
        }
        _ => false,
    }
}
