//! Events as they happen: how long each takes from who tells it to the client.
//! In: rooms, clients in each, a rate. Out: latencies, and that each client got each event once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{self, Instant};
use tokio_util::task::TaskTracker;

use super::client::{Client, Heard, Tick};
use super::ledger::{Count, Ledger};
use super::program::Program;
use super::report::{Report, milliseconds, number, percentile};
use super::site::{Site, channel, gather, nanoseconds};

/// Before the first event is due.
const BREATH: Duration = Duration::from_millis(500);
/// Latencies of the first events are not noted: connections and caches settle.
const WARM_UP: Duration = Duration::from_secs(2);
/// Longest that the last events may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// One such load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) rooms: usize,
    /// In each room.
    pub(crate) clients: usize,
    /// Events a second in each room.
    pub(crate) rate: u32,
    pub(crate) during: Duration,
}

impl Load {
    fn ticks(&self) -> u64 {
        u64::from(self.rate) * self.during.as_secs()
    }

    /// When the event with this number, over all rooms, is due.
    fn due(&self, number: u64) -> Duration {
        let each = Duration::from_secs(1) / (self.rate * self.rooms as u32);
        BREATH + each * number as u32
    }

    pub(crate) async fn measure(self) -> Report {
        let site = Arc::new(Site::open().await);
        let gateway = Program::start(&site.broker, "10m").await;
        let count = self.rooms * self.clients;
        let guests = gather(&gateway.address, count, |number| number % self.rooms).await;
        let (began, begin) = (site.began(), site.now());
        let warm = begin + (BREATH + WARM_UP.min(self.during / 4)).as_nanos() as u64;
        let last = Instant::now() + BREATH + self.during + PATIENCE;
        let hearing: Vec<_> = guests
            .into_iter()
            .enumerate()
            .map(|(number, client)| {
                let (room, ledger) = (number % self.rooms, Ledger::new(0, self.ticks()));
                tokio::spawn(hear(client, room, ledger, (began, warm), last))
            })
            .collect();
        let cpu = gateway.cpu();
        let (late, confirmed) = self.tell(&site, begin).await;
        let (mut counts, mut latencies) = (Vec::new(), Vec::new());
        for one in hearing {
            let (count, took): (Count, Vec<u32>) = one.await.unwrap();
            counts.push(count);
            latencies.extend(took);
        }
        let cpu = gateway.cpu() - cpu;
        latencies.sort_unstable();
        let mut report = Report::new(self.name, self.what);
        let deliveries = u64::from(self.rate) * count as u64;
        report.row("clients", number(count as u64));
        report.row("events a second", number(u64::from(self.rate) * self.rooms as u64));
        report.row("deliveries a second", number(deliveries));
        report.row("during", format!("{} s", self.during.as_secs()));
        for (what, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
            report.row(&format!("latency, {what}"), milliseconds(percentile(&latencies, share)));
        }
        report.row("latency, longest", milliseconds(percentile(&latencies, 1.0)));
        report.row("told late by, at most", milliseconds(late));
        report.row("confirmed within, p50", milliseconds(percentile(&confirmed, 0.5)));
        report.row("confirmed within, p99", milliseconds(percentile(&confirmed, 0.99)));
        let all = self.ticks() * count as u64;
        report.row("CPU of the gateway for a delivery", {
            format!("{:.0} µs", cpu.as_secs_f64() * 1e6 / all as f64)
        });
        report.row("memory of the gateway", super::report::megabytes(gateway.resident()));
        report.count(counts.into_iter().sum());
        report.complaints(&gateway.stop().await);
        Arc::into_inner(site).expect("all is told").close().await;
        report
    }

    /// Tells each event when it is due, whatever became of those before. By how many microseconds
    /// the latest was late, and how long confirms took.
    async fn tell(self, site: &Arc<Site>, begin: u64) -> (u32, Vec<u32>) {
        let (telling, mut late) = (TaskTracker::new(), 0);
        let (took, mut taken) = tokio::sync::mpsc::unbounded_channel();
        let mut next = 0;
        let all = self.ticks() * self.rooms as u64;
        while next < all {
            let due = begin + self.due(next).as_nanos() as u64;
            let now = site.now();
            if now < due {
                time::sleep(Duration::from_nanos(due - now)).await;
                continue;
            }
            late = late.max(now - due);
            let (room, n) = (next % self.rooms as u64, next / self.rooms as u64);
            let (site, took) = (Arc::clone(site), took.clone());
            telling.spawn(async move {
                site.tell(&channel(room as usize), Tick { n, at: due }).await;
                _ = took.send(micros(site.now() - due));
            });
            next += 1;
        }
        drop(took);
        telling.close();
        telling.wait().await;
        let mut confirmed = Vec::new();
        while let Some(micros) = taken.recv().await {
            confirmed.push(micros);
        }
        confirmed.sort_unstable();
        (micros(late), confirmed)
    }
}

fn micros(nanoseconds: u64) -> u32 {
    u32::try_from(nanoseconds / 1_000).unwrap_or(u32::MAX)
}

/// Hears everything, until it has all of it or it is too late.
async fn hear(
    mut client: Client,
    room: usize,
    mut ledger: Ledger,
    (began, warm): (std::time::Instant, u64),
    last: Instant,
) -> (Count, Vec<u32>) {
    let (channel, mut latencies) = (channel(room), Vec::new());
    while !ledger.is_full() {
        let Ok(heard) = time::timeout_at(last, client.hear(&channel)).await else { break };
        match heard.unwrap() {
            Heard::Tick { tick, offset, ours } => {
                let took = nanoseconds(began).saturating_sub(tick.at);
                if ledger.note(tick, offset, ours) && tick.at >= warm {
                    latencies.push(micros(took));
                }
            }
            odd => panic!("a client in room {room}: {odd:?}"),
        }
    }
    (ledger.count, latencies)
}
