//! A steady rate of jobs that waits for nobody.
//! In: how many, how often. Out: each is sent at its time or as soon after it as can be, stamped with
//! the time it was meant for: what waits because something stalls is counted with its whole wait
//! (Gil Tene's "coordinated omission").

use std::thread;
use std::time::Duration;

use forebay_worker::Producer;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::child::{self, Job};
use super::job::{Nothing, now};
use super::order::{Account, Event};

/// Sends everything, and waits for the confirms.
pub(crate) async fn keep(job: &Job<'_>, jobs: u64, per_second: u32) -> anyhow::Result<Account> {
    let producer = Producer::connect(job.config).await?;
    child::say(&Event::Working);
    let (tick, mut ticks) = mpsc::channel(jobs.try_into()?);
    // The runtime's own clock has steps of a millisecond, which is the gap between two jobs.
    thread::spawn(move || beat(&tick, jobs, per_second));
    job.tally.begin();
    let (mut sending, mut late) = (JoinSet::new(), 0);
    while let Some((n, at)) = ticks.recv().await {
        late = late.max(now().saturating_sub(at));
        let (producer, payload) = (producer.clone(), job.order.payload);
        sending.spawn(async move {
            let one = Nothing { at, ..Nothing::new(n, payload) };
            producer.publish(&one).await.map(|_| one)
        });
        while let Some(sent) = sending.try_join_next() {
            job.tally.note(&sent??);
        }
    }
    while let Some(sent) = sending.join_next().await {
        job.tally.note(&sent??);
    }
    producer.close().await;
    Ok(Account { late, ..job.account(None) })
}

/// The times at which jobs are meant to be sent.
fn beat(tick: &mpsc::Sender<(u64, u64)>, jobs: u64, per_second: u32) {
    let (began, gap) = (now(), 1_000_000_000 / u64::from(per_second));
    for n in 0..jobs {
        let at = began + n * gap;
        thread::sleep(Duration::from_nanos(at.saturating_sub(now())));
        // There is room for all of them.
        if tick.try_send((n, at)).is_err() {
            break;
        }
    }
}
