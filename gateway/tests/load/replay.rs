//! Everybody comes back at once and wants what was missed, from before the gateway's memory.
//! In: clients, rooms, events missed. Out: how long it took, what it took of the gateway, and that
//! each client got each event once and in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::client::{Client, Heard};
use super::ledger::{Count, Ledger};
use super::program::Program;
use super::report::{Report, megabytes, number, seconds};
use super::site::{Site, channel, gather};

/// Longest that it may take for everybody.
const PATIENCE: Duration = Duration::from_secs(240);
/// What the gateway remembers by itself: nothing of what was missed.
const WINDOW: Duration = Duration::from_secs(1);
/// How often the gateway is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// One such load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) clients: usize,
    pub(crate) rooms: usize,
    /// Events that each client has missed.
    pub(crate) missed: u64,
}

/// The most that was seen while it ran.
#[derive(Debug, Clone, Copy, Default)]
struct Most {
    readers: f64,
    waiting: f64,
    bytes: f64,
}

impl Load {
    pub(crate) async fn measure(self) -> Report {
        let site = Site::open().await;
        // They were there once: each has had the first event of its room.
        let before = Program::start(&site.broker, "10m").await;
        let guests = gather(&before.address, self.clients, |number| number % self.rooms).await;
        site.tell_all((0..self.rooms).map(|room| (room, 0))).await;
        let mut tokens = Vec::new();
        for (number, client) in guests.into_iter().enumerate() {
            tokens.push(self.leave(client, number).await);
        }
        let mut complaints = before.stop().await;

        let began = Instant::now();
        let rooms = self.rooms;
        site.tell_all((1..=self.missed).flat_map(|n| (0..rooms).map(move |room| (room, n)))).await;
        let told = began.elapsed();
        // Beyond what the gateway reads when it begins, by clocks of whole seconds.
        time::sleep(WINDOW * 3).await;

        let gateway = Arc::new(Program::start(&site.broker, "1s").await);
        let (empty, cpu) = (gateway.resident(), gateway.cpu());
        let stop = CancellationToken::new();
        let looking = tokio::spawn(look(Arc::clone(&gateway), stop.clone()));
        let (began, last) = (Instant::now(), Instant::now() + PATIENCE);
        let coming: Vec<_> = tokens
            .into_iter()
            .enumerate()
            .map(|(number, token)| {
                let address = gateway.address.clone();
                tokio::spawn(async move {
                    let (count, whole) = self.come_back(address, number, token, last).await;
                    (count, whole, began.elapsed())
                })
            })
            .collect();
        let (mut counts, mut times, mut recovered) = (Vec::new(), Vec::new(), 0);
        for one in coming {
            let (count, whole, took) = one.await.unwrap();
            counts.push(count);
            recovered += u64::from(whole);
            times.push(took);
        }
        times.sort_unstable();
        let took = times.last().copied().unwrap_or_default();
        stop.cancel();
        let most = looking.await.unwrap();
        let asked = gateway.metric("forebay_gateway_replays_total").await;
        let all = self.clients as u64 * self.missed;

        let mut report = Report::new(self.name, self.what);
        report.row("clients", number(self.clients as u64));
        report.row("rooms", number(self.rooms as u64));
        report.row("events that each has missed", number(self.missed));
        report.row("events on the stream", number(self.missed * self.rooms as u64));
        report.row("told before within", seconds(told));
        report.row("half of the clients have all after", seconds(times[times.len() / 2]));
        report.row("every client has all after", seconds(took));
        report.row("deliveries a second", number((all as f64 / took.as_secs_f64()) as u64));
        report.row("readers at once, at most", number(most.readers as u64));
        report.row("asks of the stream", number(asked as u64));
        report.row("asks that waited at once, at most", number(most.waiting as u64));
        report.row("read and not taken, at most", megabytes(most.bytes as u64));
        report.row("memory before", megabytes(empty));
        report.row("memory at its peak", megabytes(gateway.peak()));
        report.row("CPU of the gateway for a delivery", {
            format!("{:.0} µs", (gateway.cpu() - cpu).as_secs_f64() * 1e6 / all as f64)
        });
        report.count(counts.into_iter().sum());
        if recovered != self.clients as u64 {
            report.fault(format!("only {recovered} of {} were told `recovered`", self.clients));
        }
        if asked == 0.0 {
            report.fault("nothing was asked of the stream: the window was too long".to_owned());
        }
        if most.readers > 8.0 {
            report.fault(format!("{} readers at once", most.readers));
        }
        let gateway = Arc::into_inner(gateway).expect("nobody looks any more");
        complaints.extend(gateway.stop().await);
        report.complaints(&complaints);
        site.close().await;
        report
    }

    /// Waits for the first event of its room, and goes with its token.
    async fn leave(self, mut client: Client, number: usize) -> String {
        match client.hear(&channel(number % self.rooms)).await.unwrap() {
            Heard::Tick { tick, ours: true, .. } if tick.n == 0 => client.token,
            odd => panic!("client {number}: {odd:?}"),
        }
    }

    /// Comes back with its token and hears all that it has missed; whether it was told that nothing
    /// is missing.
    async fn come_back(
        self,
        address: String,
        number: usize,
        token: String,
        last: Instant,
    ) -> (Count, bool) {
        let channel = channel(number % self.rooms);
        let mut client = Client::connect(&address, number).await.unwrap();
        client.token = token;
        client.follow(&channel).await.unwrap();
        let (mut ledger, mut recovered) = (Ledger::new(1, self.missed), false);
        while !ledger.is_full() {
            let Ok(heard) = time::timeout_at(last, client.hear(&channel)).await else { break };
            match heard.unwrap() {
                Heard::Tick { tick, offset, ours } => _ = ledger.note(tick, offset, ours),
                Heard::Joined { recovered: whole } => recovered = whole,
                Heard::Odd(odd) => panic!("client {number}: {odd}"),
            }
        }
        (ledger.count, recovered)
    }
}

async fn look(gateway: Arc<Program>, stop: CancellationToken) -> Most {
    let mut most = Most::default();
    loop {
        let page = [
            ("forebay_gateway_replay_readers", &mut most.readers),
            ("forebay_gateway_replays_waiting", &mut most.waiting),
            ("forebay_gateway_replay_bytes", &mut most.bytes),
        ];
        for (name, value) in page {
            *value = value.max(gateway.metric(name).await);
        }
        if stop.run_until_cancelled(time::sleep(LOOK)).await.is_none() {
            return most;
        }
    }
}
