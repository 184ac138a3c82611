//! The faults: each with what it does, on which broker, and which duplicates it makes unavoidable.

mod broker;
mod cluster;
mod dead;
mod events;
mod network;
mod topology;
mod worker;

use fastrand::Rng;
use futures_util::future::LocalBoxFuture;

use crate::checker::Rules;
use crate::site::Site;
use crate::workload::Plan;

/// Something that goes wrong.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    /// Which jobs run more than once because of it, and why nobody can help it.
    pub(crate) duplicates: &'static str,
    pub(crate) ground: Ground,
    pub(crate) rules: Rules,
    /// Whether every worker consumes before the first job is published.
    pub(crate) workers_first: bool,
    /// It takes minutes, so the short form does without it.
    pub(crate) long: bool,
    /// What this machine lacks for it.
    pub(crate) missing: fn() -> Option<&'static str>,
    pub(crate) plan: fn() -> Plan,
    /// Done before the workers are there.
    pub(crate) before: Act,
    /// Done while jobs are published and run.
    pub(crate) strike: Act,
}

type Act = for<'a> fn(&'a mut Site, &'a mut Rng) -> LocalBoxFuture<'a, anyhow::Result<()>>;

/// The broker that a fault needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    /// One that others use meanwhile.
    Shared,
    /// One of its own, with these lines of `rabbitmq.conf`.
    Own(&'static str),
    /// Three nodes of one cluster.
    Cluster,
}

impl Fault {
    /// The usual: on the shared broker, with the usual workload.
    const fn new(name: &'static str, duplicates: &'static str, strike: Act) -> Self {
        Self {
            name,
            duplicates,
            strike,
            ground: Ground::Shared,
            rules: Rules { may_die_of: &[] },
            workers_first: true,
            long: false,
            missing: || None,
            plan: Plan::default,
            before: |_, _| Box::pin(async { Ok(()) }),
        }
    }

    const fn on_its_own_broker(mut self) -> Self {
        self.ground = Ground::Own("");
        self
    }

    const fn on_a_cluster(mut self) -> Self {
        self.ground = Ground::Cluster;
        self
    }

    const fn takes_minutes(mut self) -> Self {
        self.long = true;
        self
    }

    const fn plan(mut self, plan: fn() -> Plan) -> Self {
        self.plan = plan;
        self
    }

    const fn before(mut self, before: Act) -> Self {
        self.before = before;
        self
    }

    const fn may_die_of(mut self, reasons: &'static [&'static str]) -> Self {
        self.rules = Rules { may_die_of: reasons };
        self
    }
}

/// All of them, in the order of the table.
pub(crate) fn all() -> Vec<&'static Fault> {
    let all = [
        worker::FAULTS,
        broker::FAULTS,
        network::FAULTS,
        topology::FAULTS,
        dead::FAULTS,
        events::FAULTS,
        cluster::FAULTS,
    ];
    all.into_iter().flatten().collect()
}
