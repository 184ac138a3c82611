//! A stream of jobs, published many at a time.
//! In: jobs. Out: all are confirmed, or which ones are not, and where to go on.
//!
//! The common job costs no future, no timer and no channel of its own. One that does not find room,
//! or that the broker answers with anything but a confirm, goes the way of a single publish.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::time::{self, Instant};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, Span};

use crate::error::{BulkError, PublishError};
use crate::link::publisher::{Answer, Bulk, Message, NoAnswer};
use crate::options::PublishOptions;
#[cfg(feature = "otel")]
use crate::otel;
use crate::producer::{Destination, Producer, encode};
use crate::wire::envelope::Envelope;
use crate::wire::job::Job;

/// How many are under way at once.
const WINDOW: usize = 1_000;

/// See [`Producer::publish_all`].
pub(crate) async fn publish_all<J: Job>(
    producer: &Producer,
    jobs: impl Stream<Item = J> + Send,
) -> Result<u64, BulkError> {
    let mut run = Run::new(producer);
    let mut jobs = std::pin::pin!(jobs);
    let mut alarm = std::pin::pin!(time::sleep_until(producer.deadline()));
    let mut landed = Vec::new();
    loop {
        tokio::select! {
            biased;
            // All are cancel-safe: what has not ended stays where it is, and `next` of a pinned
            // stream holds no item.
            () = run.bulk.landed(&mut landed), if !run.flying.is_empty() => {
                landed.drain(..).for_each(|(place, answer)| run.land(place, answer));
            }
            Some((place, span, sent)) = run.single.next() => run.end(place, &span, sent),
            () = &mut alarm, if !run.flying.is_empty() => alarm.as_mut().reset(run.look()),
            next = jobs.next(), if !run.broken_off && run.under_way() < WINDOW => {
                let Some(job) = next else { break };
                run.begin(&job);
            }
            else => { run.report.stopped_at = Some(run.taken); break }
        }
    }
    while run.under_way() > 0 {
        tokio::select! {
            biased;
            () = run.bulk.landed(&mut landed), if !run.flying.is_empty() => {
                landed.drain(..).for_each(|(place, answer)| run.land(place, answer));
            }
            Some((place, span, sent)) = run.single.next() => run.end(place, &span, sent),
            () = &mut alarm, if !run.flying.is_empty() => alarm.as_mut().reset(run.look()),
        }
    }
    let report = run.report;
    if report.failed == 0 && report.stopped_at.is_none() {
        Ok(report.confirmed)
    } else {
        Err(report)
    }
}

struct Run<'a> {
    producer: &'a Producer,
    bulk: Bulk,
    taken: u64,
    /// By their places in the stream.
    flying: HashMap<u64, Flying>,
    /// Those that go the way of a single publish.
    single: FuturesUnordered<BoxFuture<'a, Ended>>,
    report: BulkError,
    broken_off: bool,
}

/// How the publish of the job at this place ended.
type Ended = (u64, Span, Result<(), PublishError>);

struct Flying {
    message: Arc<Message>,
    _waited_for: TaskTrackerToken,
    began: Instant,
    deadline: Instant,
    span: Span,
}

impl<'a> Run<'a> {
    fn new(producer: &'a Producer) -> Self {
        Self {
            producer,
            bulk: producer.publisher.bulk(),
            taken: 0,
            flying: HashMap::new(),
            single: FuturesUnordered::new(),
            report: BulkError { confirmed: 0, failures: Vec::new(), failed: 0, stopped_at: None },
            broken_off: false,
        }
    }

    fn under_way(&self) -> usize {
        self.flying.len() + self.single.len()
    }

    fn begin<J: Job>(&mut self, job: &J) {
        let place = self.taken;
        self.taken += 1;
        let options = PublishOptions::new().of_type::<J>();
        let envelope = encode(job).and_then(|payload| {
            options.into_envelope(&self.producer.config, J::KIND, payload, SystemTime::now())
        });
        match envelope {
            Ok((envelope, _)) => self.post(place, envelope),
            Err(error) => self.report.note(place, Err(error)),
        }
    }

    fn post(&mut self, place: u64, mut envelope: Envelope) {
        let producer = self.producer;
        let span = producer.begin(&mut envelope, Destination::Queue);
        if let Err(error) = producer.check(&envelope) {
            return self.end(place, &span, Err(error));
        }
        let (began, deadline) = (Instant::now(), producer.deadline());
        let tracked = envelope.track;
        let message = producer.message(envelope, Destination::Queue);
        if !tracked && let Some(token) = self.bulk.post(place, &message) {
            let flying = Flying { message, _waited_for: token, began, deadline, span };
            self.flying.insert(place, flying);
        } else {
            let sending = async move {
                let sent = producer.send_message(&message, Destination::Queue, deadline);
                let sent = sent.instrument(span.clone()).await;
                if sent.is_ok() {
                    let queue = Destination::Queue;
                    producer.tell_queued_by(&message.envelope, queue, deadline).await;
                }
                (place, span, sent)
            };
            self.single.push(sending.boxed());
        }
    }

    fn land(&mut self, place: u64, answer: Option<Result<Answer, NoAnswer>>) {
        // Not there any more: its deadline had passed.
        let Some(flying) = self.flying.remove(&place) else { return };
        let Flying { message, _waited_for, began, deadline, span } = flying;
        let answer = answer.unwrap_or_else(|| Err(self.bulk.closed(&message)));
        match self.producer.seen(&message, began, answer) {
            Ok(Answer::Confirmed) => self.end(place, &span, Ok(())),
            Ok(answer) => {
                let producer = self.producer;
                let concluding = async move {
                    let sent = producer.conclude(&message, Destination::Queue, answer, deadline);
                    let sent = sent.instrument(span.clone()).await;
                    (place, span, sent)
                };
                self.single.push(concluding.boxed());
            }
            Err(error) => self.end(place, &span, Err(error)),
        }
    }

    /// Gives up those whose deadline has passed, and says when to look again.
    fn look(&mut self) -> Instant {
        let now = Instant::now();
        let due = self.flying.iter().filter(|(_, flying)| flying.deadline <= now);
        for place in due.map(|(place, _)| *place).collect::<Vec<_>>() {
            let silence = self.bulk.leave(&self.flying[&place].message);
            self.land(place, Some(Err(silence)));
        }
        let next = self.flying.values().map(|flying| flying.deadline).min();
        next.unwrap_or_else(|| self.producer.deadline())
    }

    #[cfg_attr(not(feature = "otel"), expect(unused_variables, reason = "only spans need it"))]
    fn end(&mut self, place: u64, span: &Span, sent: Result<(), PublishError>) {
        self.producer.meter.ended(&sent);
        #[cfg(feature = "otel")]
        otel::end(span, &sent);
        self.broken_off |= matches!(sent, Err(PublishError::Unconfirmed { .. }));
        self.report.note(place, sent);
    }
}
