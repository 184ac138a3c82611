//! Clients that are there and hear nothing: what each costs.
//! In: how many, and for how long. Out: the gateway's memory for each of them.

use std::time::Duration;

use tokio::time;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Heard};
use super::ledger::{Count, Ledger};
use super::program::Program;
use super::report::{Report, kilobytes, megabytes, number, seconds};
use super::site::{Site, channel, gather};

/// Longest that the last event may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn measure(clients: usize, hold: Duration) -> Report {
    let site = Site::open().await;
    let gateway = Program::start(&site.broker, "10m").await;
    let (empty, began) = (gateway.resident(), time::Instant::now());
    let guests = gather(&gateway.address, clients, |number| number).await;
    let (came, connected) = (began.elapsed(), gateway.resident());

    let stop = CancellationToken::new();
    let staying = guests.into_iter().enumerate();
    let staying: Vec<_> =
        staying.map(|(number, client)| tokio::spawn(stay(client, number, stop.clone()))).collect();
    let cpu = gateway.cpu();
    time::sleep(hold).await;
    let (idled, cpu) = (gateway.resident(), gateway.cpu() - cpu);
    // One event each, to see that all of them are there.
    site.tell_all((0..clients).map(|number| (number, 0))).await;
    let mut counts = Vec::new();
    let mut beats = 0;
    for one in staying {
        let (count, heard) = time::timeout(PATIENCE, one).await.expect("each hears one").unwrap();
        counts.push(count);
        beats += heard;
    }
    stop.cancel();
    let mut report = Report::new("idle", "Clients that have connected and follow a channel each");
    let each = |now: u64| now.saturating_sub(empty) as f64 / clients as f64;
    report.row("clients", number(clients as u64));
    report.row("came within", seconds(came));
    report.row("gateway without them", megabytes(empty));
    report.row("for each, connected", kilobytes(each(connected)));
    let held = format!("for each, after {} s and {} pings", hold.as_secs(), number(beats));
    report.row(&held, kilobytes(each(idled)));
    report.row("for each, after an event each", kilobytes(each(gateway.resident())));
    report.row("CPU of the gateway meanwhile, of one core", {
        format!("{:.1} %", 100.0 * cpu.as_secs_f64() / hold.as_secs_f64().max(0.001))
    });
    report.count(counts.into_iter().sum());
    report.complaints(&gateway.stop().await);
    site.close().await;
    report
}

/// Answers pings until an event comes, and then until told to go.
async fn stay(mut client: Client, number: usize, stop: CancellationToken) -> (Count, u64) {
    let (channel, mut ledger) = (channel(number), Ledger::new(0, 1));
    while !ledger.is_full() {
        match client.hear(&channel).await.unwrap() {
            Heard::Tick { tick, offset, ours } => _ = ledger.note(tick, offset, ours),
            odd => panic!("client {number}: {odd:?}"),
        }
    }
    let (count, beats) = (ledger.count, client.beats);
    tokio::spawn(async move {
        // It stays until the others have theirs too.
        stop.cancelled().await;
        drop(client);
    });
    (count, beats)
}
