//! Questions to a hub that its window may not be able to answer: where a token leads, and what became
//! of a job.
//! In: a place or a job's id. Out: the answer, from the window or from the stream, in bounded time.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_producer::{EventKind, Gap, Read, Start, StreamError};
use tokio::sync::Notify;
use tokio::time::{self, Instant};

use super::course::{Ask, Piece};
use super::entry::{Entry, Place, Room};
use super::job::JobState;
use super::replay::Asked;
use super::window::Known;
use super::{Hub, SubscribeError, unavailable};

/// How long the hub waits for an event that another hub has seen already.
const AHEAD: Duration = Duration::from_secs(2);
/// Before older events are looked for again.
const AGAIN: Duration = Duration::from_millis(200);
/// Before it looks again whether that has come.
const WAIT: Duration = Duration::from_millis(20);
/// What clocks may differ by.
const SKEW: Duration = Duration::from_secs(60);

/// Where a place was found.
pub(crate) struct Located {
    pub(crate) place: Place,
    pub(crate) gap: Option<Gap>,
    pub(crate) epoch: u64,
}

impl Hub {
    /// What became of a job, by its events that are kept; `None` if there are none. Looks at recent
    /// events first, then at all that were told since its id was made; if the id does not tell when
    /// that was, at all that are kept.
    ///
    /// Who asks must be allowed to see it: that is [`JobState::owner`]'s.
    ///
    /// # Errors
    /// [`SubscribeError::Unavailable`] when older events could not be read in time.
    pub async fn state_of(&self, job: &str) -> Result<Option<JobState>, SubscribeError> {
        let by = self.patience();
        self.ready_by(by).await?;
        let room = Room::job(job);
        loop {
            let (recent, first, epoch) = {
                let hall = self.hall();
                let recent: Vec<_> = telling(hall.window.of(&room));
                (recent, hall.window.first(), hall.epoch)
            };
            let begins = recent.first().is_some_and(|entry| entry.is_of_a_new_job());
            let mut state = None;
            if first > 0 && !begins {
                let ask = Ask {
                    after: Place::BEGINNING,
                    rooms: vec![room.clone()],
                    until: first,
                    since: made_at(job).and_then(|made| made.checked_sub(SKEW)),
                };
                match self.fold(ask, by).await? {
                    Some(older) => state = older,
                    None if Instant::now() >= by => return Err(self.trouble()),
                    // Whether the stream is another one is for the tail to find out.
                    None => {
                        time::sleep(AGAIN).await;
                        continue;
                    }
                }
            }
            if self.hall().epoch == epoch {
                return Ok(recent.iter().fold(state, |state, entry| JobState::then(state, entry)));
            }
        }
    }

    /// Reads older events of a job. `None`: they were not found where they should be, which may be
    /// the broker's slowness.
    async fn fold(
        &self,
        mut ask: Ask,
        by: Instant,
    ) -> Result<Option<Option<JobState>>, SubscribeError> {
        let mut state = None;
        loop {
            let mut asked = Waiting::new(self, ask.clone());
            loop {
                match asked.next(by).await.ok_or_else(|| self.trouble())? {
                    Piece::Event(entry) => state = JobState::then(state, &entry),
                    Piece::End(place) if place.next >= ask.until => return Ok(Some(state)),
                    Piece::Verdict(Some(Gap::Recreated)) => return Ok(None),
                    Piece::Verdict(_) => {}
                    // Nothing was read: from where that would begin is as open as before.
                    Piece::End(place) if place.is_beginning() => break,
                    Piece::End(place) => {
                        (ask.after, ask.since) = (place, None);
                        break;
                    }
                }
            }
        }
    }

    /// Looks whether a place is still there; if not, where everything begins.
    pub(crate) async fn locate(
        &self,
        place: &Place,
        by: Instant,
    ) -> Result<Located, SubscribeError> {
        let patience = by.min(Instant::now() + AHEAD);
        loop {
            let (known, epoch, trimmed, empty) = {
                let hall = self.hall();
                // All that it had is gone.
                let trimmed =
                    hall.trimmed && (place.is_beginning() || hall.window.begins_after(place));
                let empty = hall.window.covers(0) && hall.window.head().is_beginning();
                (hall.window.know(place), hall.epoch, trimmed, empty)
            };
            let located = |gap: Option<Gap>| {
                let place = if gap.is_some() { Place::BEGINNING } else { place.clone() };
                Located { place, gap, epoch }
            };
            match known {
                Known::Here | Known::Older | Known::Not if trimmed => {
                    return Ok(located(Some(Gap::Retention)));
                }
                Known::Here => return Ok(located(None)),
                Known::Not => return Ok(located(Some(Gap::Recreated))),
                Known::Older => {
                    let gap = self.verdict(place, by).await?;
                    let mut hall = self.hall();
                    hall.trimmed |= place.is_beginning() && gap.is_some() && hall.epoch == epoch;
                    return Ok(located(gap));
                }
                Known::Ahead if Instant::now() >= by => return Err(self.trouble()),
                // Another hub may have been faster, for a moment or because the broker does not
                // answer us. The stream itself knows.
                Known::Ahead if Instant::now() >= patience => {
                    if let Some(gap) = self.look_ahead(place, empty, by).await? {
                        return Ok(located(gap));
                    }
                    time::sleep(AGAIN).await;
                }
                Known::Ahead => {}
            }
            time::sleep(WAIT).await;
        }
    }

    /// Asks the stream about a place that the tail has not come to, with a reader of its own: one
    /// that reads for others might never get there. `None`: it is there, and the tail will come to
    /// it; or too many ask now.
    async fn look_ahead(
        &self,
        place: &Place,
        empty: bool,
        by: Instant,
    ) -> Result<Option<Option<Gap>>, SubscribeError> {
        let Ok(_turn) = self.shared.ahead.try_acquire() else { return Ok(None) };
        let log = &self.shared.log;
        let looking = async {
            // On a stream to which nothing was ever told the look for a place would not end.
            if empty && time::timeout(AHEAD, log.read(Start::Last).await?.next()).await.is_err() {
                return Ok(Some(Gap::Recreated));
            }
            let mut events = log.read(Start::After(place.token())).await?;
            match events.next().await? {
                Read::Gap(gap) => Ok(Some(gap)),
                _ => Ok::<_, StreamError>(None),
            }
        };
        match time::timeout_at(by, looking).await {
            Ok(Ok(gap)) => Ok(Some(gap)),
            Ok(Err(error)) => Err(unavailable(&error.to_string())),
            Err(_) => Err(self.trouble()),
        }
    }

    /// Asks the stream whether a place is there.
    async fn verdict(&self, place: &Place, by: Instant) -> Result<Option<Gap>, SubscribeError> {
        let ask = Ask { after: place.clone(), rooms: Vec::new(), until: place.next, since: None };
        let mut asked = Waiting::new(self, ask);
        loop {
            match asked.next(by).await.ok_or_else(|| self.trouble())? {
                Piece::Verdict(gap) => return Ok(gap),
                // A reader that failed gives no verdict.
                Piece::End(_) => return Err(self.trouble()),
                Piece::Event(_) => {}
            }
        }
    }
}

/// An ask of somebody who waits for its pieces.
struct Waiting {
    asked: Asked,
    bell: Arc<Notify>,
}

impl Waiting {
    fn new(hub: &Hub, ask: Ask) -> Self {
        let bell = Arc::new(Notify::new());
        Self { asked: hub.ask(ask, &bell), bell }
    }

    /// `None`: nothing has come in time.
    async fn next(&mut self, by: Instant) -> Option<Piece> {
        loop {
            if let Some(piece) = self.asked.take() {
                return Some(piece);
            }
            // Cancel-safe: a ring that nobody waits for is kept.
            time::timeout_at(by, self.bell.notified()).await.ok()?;
        }
    }
}

/// Those that say where a job stands: of its progress the newest only.
fn telling<'a>(entries: impl DoubleEndedIterator<Item = &'a Arc<Entry>>) -> Vec<Arc<Entry>> {
    let mut progressed = false;
    let newest_first = entries.rev().filter(|entry| {
        entry.what != EventKind::Progress || !std::mem::replace(&mut progressed, true)
    });
    let mut telling: Vec<_> = newest_first.cloned().collect();
    telling.reverse();
    telling
}

/// When a job's id was made, if it is one that says so: UUIDv7 begins with milliseconds.
fn made_at(job: &str) -> Option<SystemTime> {
    let digits = job.replace('-', "");
    if digits.len() != 32 || digits.as_bytes().get(12) != Some(&b'7') {
        return None;
    }
    let ms = u64::from_str_radix(digits.get(..12)?, 16).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_version_seven_tells_when_it_was_made() {
        let made = |job: &str| made_at(job)?.duration_since(UNIX_EPOCH).ok();
        let id = "0199e0a8-7c00-7000-8000-000000000001";
        assert_eq!(made(id), Some(Duration::from_millis(0x0199_e0a8_7c00)));
        assert_eq!(made("0199e0a8-7c00-5000-8000-000000000001"), None, "made of a name");
        for other in [
            "",
            "7",
            "order-4711",
            "zzzzzzzz-zzzz-7zzz-zzzz-zzzzzzzzzzzz",
            "ä0199e0a87c00700080000000000000",
        ] {
            assert_eq!(made(other), None, "{other}");
        }
    }
}
