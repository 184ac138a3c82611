//! What is declared against what is there, argument by argument.
//! In: declarations, and looks at them. Out: findings with the commands that mend them.

use std::time::Duration;

use forebay_producer::link::examine::{Difference, Examiner, Look};
use forebay_producer::link::fault::Fault;
use forebay_producer::wire::delay::LEVELS;
use forebay_producer::wire::topology::{Declaration, Target};
use forebay_producer::{DeadError, Declare, Inspector, Topology};

use super::finding::{Finding, Level};
use crate::globals::Session;
use crate::moment;

/// All that should be there, and what it takes to speak of it.
pub(super) struct Plan {
    pub(super) topology: Topology,
    /// Job queues.
    pub(super) queues: Vec<String>,
    pub(super) declarations: Vec<Declaration>,
    /// Our own command with the flags that it was called with.
    pub(super) forebay: String,
    pub(super) vhost: String,
    may_declare: bool,
    /// The highest level of the delay ladder that is there.
    top: Reach,
    /// The highest one that the manifest's functions may need, and for how long a wait.
    wanted: Option<(u8, Duration)>,
}

/// How high the delay ladder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Up to this level, or nothing of it is there.
    To(Option<u8>),
    /// This user may not look.
    Unseen,
}

/// What a queue is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    Jobs(String),
    Dead(String),
    Unrouted,
    /// A level of the delay ladder.
    Level(u8),
    /// The stream of events.
    Events,
    /// Of the namespace, and none that Forebay knows.
    Stranger,
}

impl Reach {
    fn level(self) -> Option<u8> {
        match self {
            Self::To(top) => top,
            Self::Unseen => None,
        }
    }
}

impl Plan {
    /// For these queues, the ladder up to the highest level that is there, and the stream of events
    /// if that is there.
    pub(super) fn new(
        queues: Vec<String>,
        top: Reach,
        events: bool,
        forebay: String,
        session: &Session,
    ) -> Self {
        let topology = session.config.topology().clone();
        let mut all = Vec::new();
        for queue in &queues {
            all.extend(topology.for_queue(queue, session.manifest.queue_type(queue)));
        }
        all.extend(top.level().map(|top| topology.for_ladder(top)).unwrap_or_default());
        if events {
            all.extend(topology.for_events(session.config.kept()));
        }
        let declarations = crate::topology::each_once(all);
        let may_declare = session.config.declares() != Declare::Never;
        let vhost = session.config.vhost().to_owned();
        let wanted = crate::topology::wanted_level(&session.manifest);
        let wanted = wanted.zip(session.manifest.longest_wait());
        Self { topology, queues, declarations, forebay, vhost, may_declare, top, wanted }
    }

    pub(super) fn role(&self, queue: &str) -> Role {
        let jobs = self.queues.iter().find(|name| self.topology.queue(name) == queue);
        let dead = self.queues.iter().find(|name| self.topology.dead_queue(name) == queue);
        match (jobs, dead) {
            (Some(name), _) => Role::Jobs(name.clone()),
            (_, Some(name)) => Role::Dead(name.clone()),
            _ if queue == self.topology.unrouted() => Role::Unrouted,
            _ if queue == self.topology.events() => Role::Events,
            _ => {
                let level = (0..LEVELS).find(|level| self.topology.delay(*level) == queue);
                level.map_or(Role::Stranger, Role::Level)
            }
        }
    }

    /// The command that declares everything that is missing, or what is missing for one queue.
    pub(super) fn apply(&self, queue: Option<&str>) -> String {
        let queues = queue.map_or_else(|| self.queues.clone(), |queue| vec![queue.to_owned()]);
        let queues: String = queues.iter().map(|queue| format!(" --queue {queue}")).collect();
        let events = self.declarations.iter().any(|one| self.is_of_events(one));
        let events = if events { " --events" } else { "" };
        // A delay of exactly one level's time takes all levels up to it.
        let top = self.top.level().max(self.wanted.map(|(level, _)| level));
        let delays = top.map(|top| format!(" --delays {}ms", 100_u64 << top));
        format!("{} topology apply{queues}{}{events}", self.forebay, delays.unwrap_or_default())
    }

    fn is_of_events(&self, declaration: &Declaration) -> bool {
        let (Declaration::Queue { name, .. } | Declaration::Exchange { name, .. }) = declaration
        else {
            return false;
        };
        self.role(name) == Role::Events
    }

    fn delete(&self, name: &str) -> String {
        format!("{} topology delete --name {name}", self.forebay)
    }

    /// One finding for each thing that is not as declared, or one that says that all is.
    pub(super) fn findings(&self, looks: &[(Declaration, Look)], bindings: bool) -> Vec<Finding> {
        let mut findings: Vec<_> = looks
            .iter()
            .filter_map(|(declaration, look)| match look {
                Look::There(differences) if !differences.is_empty() => {
                    Some(self.differs(declaration, differences))
                }
                _ => None,
            })
            .collect();
        findings.extend(self.missing(looks));
        findings.extend(denied(looks));
        if findings.is_empty() {
            let counted = |want: fn(&Declaration) -> bool| {
                looks
                    .iter()
                    .filter(|(one, look)| want(one) && matches!(look, Look::There(_)))
                    .count()
            };
            let queues = counted(|one| matches!(one, Declaration::Queue { .. }));
            let exchanges = counted(|one| matches!(one, Declaration::Exchange { .. }));
            let bound = counted(|one| matches!(one, Declaration::Binding { .. }));
            let bound = if bindings { format!(" and {bound} bindings") } else { String::new() };
            findings.push(Finding::ok(
                "topology.declared",
                format!(
                    "{queues} queues, {exchanges} exchanges{bound} are as declared, argument by \
                     argument"
                ),
            ));
        }
        findings.extend(self.ladder());
        findings
    }

    /// Whether retries find the levels that they need. Whoever may declare makes them at need.
    fn ladder(&self) -> Option<Finding> {
        let (Reach::To(top), Some((wanted, wait))) = (self.top, self.wanted) else { return None };
        if top >= Some(wanted) {
            return None;
        }
        let reaches = match top {
            Some(top) => {
                let sum = Duration::from_millis(100 * ((2 << top) - 1));
                format!("reaches up to {}", moment::short(sum))
            }
            None => "is not there".to_owned(),
        };
        let wait = moment::short(wait);
        let (level, then) = if self.may_declare {
            (
                Level::Note,
                "the first worker that needs a level declares it; one with FOREBAY_DECLARE=never \
                 cannot, and its job becomes a dead letter instead",
            )
        } else {
            (
                Level::Fault,
                "where nothing may be declared (FOREBAY_DECLARE=never) a job that is to wait \
                 longer than it reaches becomes a dead letter instead",
            )
        };
        let what = format!(
            "the delay ladder {reaches}, and a function of the manifest may have a job wait \
             {wait}: {then}"
        );
        Some(Finding::new("topology.ladder", level, what).mend(self.apply(None)))
    }

    /// What is not there, one finding for each kind of thing.
    fn missing(&self, looks: &[(Declaration, Look)]) -> Vec<Finding> {
        let missing = looks.iter().filter(|(_, look)| *look == Look::Missing);
        let missing: Vec<_> = missing.map(|(declaration, _)| declaration).collect();
        let mut findings = Vec::new();
        for id in ["topology.exchange", "topology.queue", "topology.binding"] {
            let these: Vec<_> = missing.iter().filter(|one| id_of(one) == id).collect();
            if these.is_empty() {
                continue;
            }
            let names: Vec<_> = these.iter().map(|one| described(one)).collect();
            let (level, then) = match id {
                // A worker that consumes declares its queue only when it is not there.
                "topology.binding" => (Level::Fault, "messages do not find their way"),
                // Only those up to the highest that is there are looked at.
                _ if these.iter().any(|one| self.is_a_level(one)) => {
                    (Level::Fault, "delayed jobs that have to pass there stay on the levels above")
                }
                _ if self.may_declare => {
                    (Level::Warning, "the first worker or publish that needs it declares it")
                }
                _ => (Level::Fault, "nothing may be declared here (FOREBAY_DECLARE=never)"),
            };
            let what = format!("not there: {}; {then}", names.join(", "));
            let queues: Vec<_> = these.iter().map(|one| self.queue_of(one)).collect();
            let same = queues.iter().all(|queue| *queue == queues[0]);
            let one = queues[0].as_deref().filter(|_| same);
            findings.push(Finding::new(id, level, what).mend(self.apply(one)));
        }
        findings
    }

    fn is_a_level(&self, declaration: &Declaration) -> bool {
        let (Declaration::Queue { name, .. } | Declaration::Exchange { name, .. }) = declaration
        else {
            return false;
        };
        matches!(self.role(name), Role::Level(_))
    }

    /// The job queue that a declaration is for, if it is for one.
    fn queue_of(&self, declaration: &Declaration) -> Option<String> {
        let (Declaration::Queue { name, .. }
        | Declaration::Binding { to: Target::Queue(name), .. }) = declaration
        else {
            return None;
        };
        match self.role(name) {
            Role::Jobs(queue) | Role::Dead(queue) => Some(queue),
            _ => None,
        }
    }

    fn differs(&self, declaration: &Declaration, differences: &[Difference]) -> Finding {
        let id = id_of(declaration);
        let (Declaration::Queue { name, .. } | Declaration::Exchange { name, .. }) = declaration
        else {
            return Finding::warning(id, described(declaration));
        };
        let told: Vec<_> = differences.iter().map(spelled).collect();
        let level = if differences.iter().any(|one| self.hurts(declaration, &one.argument)) {
            Level::Fault
        } else {
            Level::Warning
        };
        let queue = self.queue_of(declaration);
        let how = if id == "topology.queue" {
            "arguments cannot be changed: once it is empty and nobody consumes, delete it and \
             declare it anew"
        } else {
            "it cannot be changed: while nobody publishes, delete it and declare it anew with its \
             bindings"
        };
        let what = format!("{}: {}; {how}", described(declaration), told.join(", "));
        let finding = Finding::new(id, level, what);
        finding.mend(self.delete(name)).mend(self.apply(queue.as_deref()))
    }

    /// Whether jobs can be lost or come at the wrong time because of it. Of events another retention
    /// is no fault: it may be meant.
    fn hurts(&self, declaration: &Declaration, argument: &str) -> bool {
        match argument {
            _ if self.is_of_events(declaration) => false,
            "x-delivery-limit" => match declaration {
                // Without "no limit" a look at it deletes what it holds.
                Declaration::Queue { name, .. } => !matches!(self.role(name), Role::Jobs(_)),
                _ => true,
            },
            "x-queue-type"
            | "x-dead-letter-strategy"
            | "x-overflow"
            | "x-queue-version"
            | "x-max-in-memory-length"
            | "x-single-active-consumer" => false,
            _ => true,
        }
    }
}

/// Looks at everything over AMQP; bindings cannot be seen there.
pub(super) async fn look(
    plan: &Plan,
    examiner: &Examiner,
) -> Result<Vec<(Declaration, Look)>, Fault> {
    let mut looks = Vec::new();
    for declaration in &plan.declarations {
        if !matches!(declaration, Declaration::Binding { .. }) {
            looks.push((declaration.clone(), examiner.look(declaration).await?));
        }
    }
    Ok(looks)
}

/// How high the ladder is, over AMQP, by looks that who may use a level may take too.
pub(super) async fn top(session: &Session) -> Result<Reach, DeadError> {
    let inspector = Inspector::new(&session.config);
    let (mut top, mut denied) = (None, false);
    // All of them: one that is missing in between is a fault.
    for level in 0..LEVELS {
        match inspector.count(&session.config.topology().delay(level)).await {
            Ok(Some(_)) => top = Some(level),
            Ok(None) => {}
            Err(DeadError::MayNotLook { .. }) => denied = true,
            Err(error) => {
                inspector.close().await;
                return Err(error);
            }
        }
    }
    inspector.close().await;
    Ok(if denied && top.is_none() { Reach::Unseen } else { Reach::To(top) })
}

/// Whether the stream of events is there. It need not be.
pub(super) async fn has_events(session: &Session) -> Result<bool, DeadError> {
    let inspector = Inspector::new(&session.config);
    let count = inspector.count(&session.config.topology().events()).await;
    inspector.close().await;
    match count {
        Ok(count) => Ok(count.is_some()),
        Err(DeadError::MayNotLook { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Told together: who may not look at one may look at none.
fn denied(looks: &[(Declaration, Look)]) -> Option<Finding> {
    let denied = looks.iter().filter_map(|(_, look)| match look {
        Look::Denied(because) => Some(because),
        _ => None,
    });
    let denied: Vec<_> = denied.collect();
    let what = format!(
        "this user may not compare the arguments of {} of {} queues and exchanges: {}; that takes \
         `configure`, which workers and publishers need not have: run it as the operator, or with \
         FOREBAY_MANAGEMENT_URL",
        denied.len(),
        looks.len(),
        denied.first()?
    );
    Some(Finding::note("topology.look", what))
}

fn id_of(declaration: &Declaration) -> &'static str {
    match declaration {
        Declaration::Exchange { .. } => "topology.exchange",
        Declaration::Queue { .. } => "topology.queue",
        _ => "topology.binding",
    }
}

fn spelled(difference: &Difference) -> String {
    let Difference { argument, declared, live } = difference;
    let is = live.as_ref().map_or_else(|| "is not set".to_owned(), |live| format!("is {live}"));
    match declared {
        Some(declared) => format!("{argument} {is} (declared {declared})"),
        None => format!("{argument} {is} (declared without)"),
    }
}

fn described(declaration: &Declaration) -> String {
    match declaration {
        Declaration::Exchange { name, .. } => format!("exchange `{name}`"),
        Declaration::Queue { name, .. } => format!("queue `{name}`"),
        Declaration::Binding { from, to, key } => {
            let to = match to {
                Target::Queue(queue) => format!("queue `{queue}`"),
                Target::Exchange(exchange) => format!("exchange `{exchange}`"),
                _ => String::new(),
            };
            format!("the binding of {to} to exchange `{from}` with key `{key}`")
        }
        _ => "something new".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_producer::QueueType;

    fn plan(may_declare: bool) -> Plan {
        let topology = Topology::new("shop").unwrap();
        let mut declarations = topology.for_queue("mail", QueueType::Quorum);
        declarations.extend(topology.for_ladder(1));
        Plan {
            topology,
            queues: vec!["mail".to_owned()],
            declarations: crate::topology::each_once(declarations),
            forebay: "forebay".to_owned(),
            vhost: "/".to_owned(),
            may_declare,
            top: Reach::To(Some(1)),
            wanted: None,
        }
    }

    /// All as declared, but for one.
    fn looks(plan: &Plan, odd: &str, look: &Look) -> Vec<(Declaration, Look)> {
        let is_odd = |one: &Declaration| described(one) == odd;
        let all = plan.declarations.iter().map(|one| {
            let seen = if is_odd(one) { look.clone() } else { Look::There(Vec::new()) };
            (one.clone(), seen)
        });
        let all: Vec<_> = all.collect();
        assert!(all.iter().any(|(one, _)| is_odd(one)), "{odd}");
        all
    }

    fn other(argument: &str) -> Look {
        let (declared, live) = (Some("1".to_owned()), Some("2".to_owned()));
        Look::There(vec![Difference { argument: argument.to_owned(), declared, live }])
    }

    #[test]
    fn what_differs_is_judged_by_what_it_does_to_jobs() {
        const BOUND: &str = "the binding of queue `shop.mail` to exchange `shop` with key `mail`";
        let plan = plan(true);
        for (odd, look, id, level) in [
            ("queue `shop.mail`", other("x-delivery-limit"), "topology.queue", Level::Warning),
            ("queue `shop.mail.dead`", other("x-delivery-limit"), "topology.queue", Level::Fault),
            ("queue `shop.mail`", other("x-queue-type"), "topology.queue", Level::Warning),
            ("queue `shop.mail`", other("x-max-length"), "topology.queue", Level::Fault),
            ("queue `shop.delay.01`", other("x-message-ttl"), "topology.queue", Level::Fault),
            ("exchange `shop`", other("type"), "topology.exchange", Level::Fault),
            ("queue `shop.mail`", Look::Missing, "topology.queue", Level::Warning),
            (BOUND, Look::Missing, "topology.binding", Level::Fault),
            ("queue `shop.mail`", Look::Denied("no".to_owned()), "topology.look", Level::Note),
        ] {
            let findings = plan.findings(&looks(&plan, odd, &look), true);
            let [finding] = &findings[..] else { panic!("{odd}: {findings:?}") };
            assert_eq!((finding.id, finding.level), (id, level), "{odd} {look:?}");
        }
    }

    #[test]
    fn the_commands_name_the_queue_and_reach_as_high_as_the_ladder() {
        let plan = plan(true);
        let look = looks(&plan, "queue `shop.mail`", &other("x-queue-type"));
        let mend = &plan.findings(&look, true)[0].mend;
        let delete = "forebay topology delete --name shop.mail";
        assert_eq!(mend, &[delete, "forebay topology apply --queue mail --delays 200ms"]);
    }

    #[test]
    fn where_nothing_may_be_declared_a_missing_queue_is_a_fault() {
        let plan = plan(false);
        let look = looks(&plan, "queue `shop.mail.dead`", &Look::Missing);
        assert_eq!(plan.findings(&look, true)[0].level, Level::Fault);
    }

    #[test]
    fn a_level_that_is_missing_below_another_is_a_fault_whoever_may_declare() {
        let plan = plan(true);
        let look = looks(&plan, "queue `shop.delay.00`", &Look::Missing);
        let findings = plan.findings(&look, true);
        assert_eq!(findings[0].level, Level::Fault);
        assert!(findings[0].what.contains("stay on the levels above"), "{}", findings[0].what);
    }

    #[test]
    fn a_ladder_that_is_too_low_is_a_fault_where_nothing_may_be_declared() {
        let hours = |level| Some((level, Duration::from_secs(5 * 3600)));
        for (may_declare, top, wanted, level) in [
            (false, Reach::To(Some(15)), hours(17), Some(Level::Fault)),
            (true, Reach::To(Some(15)), hours(17), Some(Level::Note)),
            (false, Reach::To(None), hours(17), Some(Level::Fault)),
            (false, Reach::To(Some(17)), hours(17), None),
            (false, Reach::Unseen, hours(17), None),
            (false, Reach::To(None), None, None),
        ] {
            let plan = Plan { top, wanted, ..plan(may_declare) };
            let finding = plan.ladder();
            assert_eq!(finding.as_ref().map(|one| one.level), level, "{top:?} {wanted:?}");
            if let Some(finding) = finding {
                assert!(finding.what.contains("may have a job wait 5h"), "{finding:?}");
                assert!(finding.mend[0].ends_with("--delays 13107200ms"), "{finding:?}");
            }
        }
    }

    #[test]
    fn all_as_declared_is_one_line() {
        let plan = plan(true);
        let all: Vec<_> =
            plan.declarations.iter().map(|one| (one.clone(), Look::There(Vec::new()))).collect();
        let findings = plan.findings(&all, true);
        assert_eq!((findings.len(), findings[0].level), (1, Level::Ok));
        assert!(
            findings[0].what.starts_with("5 queues, 6 exchanges and 8 bindings"),
            "{findings:?}"
        );
    }
}
