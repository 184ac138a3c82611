//! What became of a job, by what its events say; pure.
//! In: the job's events in stream order. Out: its state.

use forebay_producer::{Event, EventKind, Token};
use serde::Serialize;
use serde_json::value::RawValue;

use super::entry::Entry;

/// What the clocks of a publisher and a worker may differ by.
const SKEW_MS: u64 = 60_000;

/// Where a job stands, as far as its events tell.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct JobState {
    /// Its id.
    pub job: String,
    /// Its kind.
    pub kind: Option<String>,
    /// Its queue.
    pub queue: Option<String>,
    /// Whose it is.
    #[serde(skip)]
    pub owner: Option<String>,
    /// The last word of the event that tells most: `queued`, `started`, `retrying`, `succeeded`,
    /// `dead`.
    pub state: String,
    /// The attempt that is meant.
    pub attempt: Option<u32>,
    /// The newest progress of that attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Box<RawValue>>,
    /// What that event says: the result, the error, the delay.
    pub data: Box<RawValue>,
    /// When that was, in milliseconds since the epoch, by the clock of who told it.
    pub time_ms: u64,
    /// Where to subscribe from to get what comes after.
    #[serde(serialize_with = "as_text")]
    pub token: Token,
    #[serde(skip)]
    rank: u32,
    #[serde(skip)]
    over: bool,
}

fn as_text<S: serde::Serializer>(token: &Token, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(token)
}

impl JobState {
    /// Goes on with the job's next event on the stream.
    pub(crate) fn then(state: Option<Self>, entry: &Entry) -> Option<Self> {
        let Ok(event) = entry.event() else { return state };
        if !event.what.is_of_job() {
            return state;
        }
        let token = entry.token();
        let Some(mut state) = state else { return Some(Self::begin(event, token)) };
        state.token = token;
        if event.what == EventKind::Progress {
            if event.rank.unwrap_or(0) >= state.rank || event.attempt == state.attempt {
                state.progress = Some(event.data);
            }
            return Some(state);
        }
        // Published again under its key it begins anew, with the same rank as at first. But the `queued`
        // of a fast job may be told after its end, by another clock.
        let since = match event.what {
            EventKind::Queued => state.time_ms.saturating_add(SKEW_MS),
            _ => state.time_ms,
        };
        let again = state.over && event.time_ms > since;
        if again || event.rank.unwrap_or(0) >= state.rank {
            let progress = state.progress.filter(|_| event.attempt == state.attempt);
            let token = state.token;
            return Some(Self { progress, ..Self::begin(event, token) });
        }
        Some(state)
    }

    fn begin(event: Event, token: Token) -> Self {
        let progressing = event.what == EventKind::Progress;
        let state = if progressing { &EventKind::Started } else { &event.what };
        let (progress, data) = match progressing {
            true => (Some(event.data), RawValue::NULL.to_owned()),
            false => (None, event.data),
        };
        Self {
            state: state.word().to_owned(),
            over: event.what.is_final(),
            job: event.subject,
            kind: event.kind,
            queue: event.queue,
            owner: event.owner,
            attempt: event.attempt,
            progress,
            data,
            time_ms: event.time_ms,
            token,
            rank: event.rank.unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use forebay_producer::Envelope;

    use super::*;

    /// What is told of a job at these times, in stream order.
    fn state(told: &[(EventKind, u32, u64)]) -> JobState {
        let mut job = Envelope::new("note.take", "notes", "{}");
        let mut state = None;
        for (offset, (what, attempt, time_ms)) in told.iter().enumerate() {
            job.attempt = *attempt;
            let data = RawValue::NULL.to_owned();
            let mut event = Event::of_job(what.clone(), &job, data);
            event.time_ms = *time_ms;
            let entry = Entry {
                offset: offset as u64,
                id: Arc::from(event.id.as_str()),
                what: event.what.clone(),
                rooms: Box::default(),
                owner: None,
                name: None,
                bytes: event.encode(),
            };
            state = JobState::then(state, &entry);
        }
        state.unwrap()
    }

    #[test]
    fn a_job_that_has_ended_is_queued_again_only_if_that_is_told_much_later() {
        use EventKind::{Dead, Queued, Started, Succeeded};
        for (told, expected) in [
            (vec![(Started, 1, 1_000), (Succeeded, 1, 1_010), (Queued, 1, 1_500)], "succeeded"),
            (vec![(Queued, 1, 1_000), (Dead, 2, 2_000), (Queued, 3, 2_500)], "queued"),
            (vec![(Dead, 5, 2_000), (Queued, 1, 2_000 + SKEW_MS)], "dead"),
            (vec![(Dead, 5, 2_000), (Queued, 1, 2_001 + SKEW_MS)], "queued"),
            (vec![(Dead, 5, 2_000), (Started, 1, 2_500)], "started"),
        ] {
            assert_eq!(state(&told).state, expected, "{told:?}");
        }
    }
}
