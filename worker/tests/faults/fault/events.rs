//! Tracked jobs: whatever happens, the stream tells how each one ended.

use forebay_producer::EventLog;
use futures_util::FutureExt;

use super::{Fault, broker, network, worker};
use crate::site::Site;
use crate::workload::Plan;

fn tracked() -> Plan {
    Plan { tracked: true, ..Plan::default() }
}

pub(super) const FAULTS: &[Fault] = &[
    Fault::new("worker killed (kill -9) with tracked jobs", "As for a kill.", |site, rng| {
        worker::killed(site, rng).boxed_local()
    })
    .plan(tracked),
    Fault::new("connections cut at random with tracked jobs", "As for a cut.", |site, rng| {
        network::cut(site, rng).boxed_local()
    })
    .plan(tracked),
    Fault::new("broker killed with tracked jobs", "As for a kill.", |site, rng| {
        broker::killed(site, rng).boxed_local()
    })
    .on_its_own_broker()
    .before(|site, _| old_stream(site).boxed_local())
    .plan(tracked),
];

/// What is killed with the broker was declared some time before, as in [`broker::old_queues`].
async fn old_stream(site: &mut Site) -> anyhow::Result<()> {
    let log = EventLog::new(&site.config());
    log.declare().await?;
    log.close().await;
    broker::old_queues(site).await
}
