//! One delivery after the other through the worker's own rooms, without a broker: what a job costs.
//! In: deliveries. Out: nothing; each is decoded, placed, run, decided on and noted as settled.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use forebay_producer::wire::envelope::{Envelope, now_ms};
use lapin::message::Delivery;
use tokio_util::sync::CancellationToken;

use super::producers;
use crate::acker::{Acker, How};
use crate::builder::QueueOptions;
use crate::intake::Intake;
use crate::load;
use crate::running::Running;
use crate::runtime::Worker;
use crate::telemetry::{self, Counts};
use crate::verdict::Verdict;

/// How many finished jobs are acknowledged together.
const TOGETHER: u64 = 64;
const PREFETCH: u16 = 200;

/// The rooms of one queue, for measuring; what a job costs in the client library and in a task of
/// its own is not part of it.
pub struct Workbench<S> {
    intake: Intake<S>,
    stop: CancellationToken,
    acker: Acker,
}

impl<S: Send + Sync + 'static> Workbench<S> {
    /// The rooms of this worker's queue of that name.
    pub fn new(worker: &Worker<S>, queue: &str) -> Self {
        let intake = Intake::new(
            queue.to_owned(),
            worker.queues.get(queue).cloned().unwrap_or_else(QueueOptions::new),
            Arc::clone(&worker.app),
            producers(),
            Arc::new(Counts::new()),
            Arc::new(Running::default()),
            Duration::from_secs(1_800),
        );
        Self { intake, stop: CancellationToken::new(), acker: Acker::new(PREFETCH) }
    }

    /// Takes it through all rooms. `true`: it was acked.
    pub async fn work(&mut self, delivery: Delivery) -> bool {
        let tag = delivery.delivery_tag;
        let job = self.intake.envelope(delivery);
        let mut here = self.intake.load.deliver(load::due_ms(&job).unwrap_or_else(now_ms));
        let handler = self.intake.handler(&job);
        let Some(places) = self.intake.permits_at_once(handler, &job) else { return false };
        let now_ms = self.intake.begins(&job, &mut here);
        let _span = telemetry::span(&job, self.intake.producers.exchange());
        let run = self.intake.run(&self.stop, handler, job, now_ms, places.of_handler);
        let (verdict, cx) = run.await;
        self.intake.decided(cx.envelope(), &verdict);
        let acked = matches!(verdict, Verdict::Ack(_));
        let mut orders = Vec::new();
        self.acker.settle(tag, if acked { How::Ack } else { How::GiveBack }, &mut orders);
        if tag.is_multiple_of(TOGETHER) {
            self.acker.flush(&mut orders);
        }
        here.settled();
        acked
    }
}

impl<S> fmt::Debug for Workbench<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workbench").finish_non_exhaustive()
    }
}

/// A delivery of such a job as the client library hands it over. Tags count from 1.
pub fn delivery(job: &Envelope, tag: u64) -> Delivery {
    let (key, data) = (job.queue.as_str().into(), job.payload.to_vec());
    let mut delivery = Delivery::mock(tag, "forebay".into(), key, false, data);
    delivery.properties = job.properties();
    delivery
}

/// Acknowledges so many deliveries of a prefetch window, the first of every ten last, and says how
/// many orders that took.
pub fn acknowledge(deliveries: u64) -> usize {
    let mut acker = Acker::new(PREFETCH);
    let mut orders = Vec::new();
    for first in (1..=deliveries).step_by(10) {
        for tag in (first + 1..first + 10).chain([first]) {
            acker.settle(tag, How::Ack, &mut orders);
        }
        acker.flush(&mut orders);
    }
    orders.len()
}
