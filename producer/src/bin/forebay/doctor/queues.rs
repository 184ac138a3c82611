//! What lies on the queues, by looks that take nothing.
//! In: counts. Out: findings about dead letters, strays, work that nobody takes, and consumers where
//! none should be.

use forebay_producer::wire::delay::LEVELS;
use forebay_producer::{DeadError, Inspector, QueueCount};

use super::finding::Finding;
use super::topology::{Plan, Role};
use crate::globals::Session;
use crate::manifest::Manifest;
use crate::queues::MANY_DEAD;
use crate::screen;

/// Looks at every queue of the plan, and at all levels of the ladder that are there.
pub(super) async fn look(plan: &Plan, session: &Session) -> Result<Vec<Finding>, DeadError> {
    let inspector = Inspector::new(&session.config);
    let mut findings = Vec::new();
    let topology = &plan.topology;
    let mut names: Vec<String> = plan
        .queues
        .iter()
        .flat_map(|name| [topology.queue(name), topology.dead_queue(name)])
        .collect();
    names.push(topology.unrouted());
    names.extend((0..LEVELS).map(|level| topology.delay(level)));
    let mut denied = None;
    for name in names {
        match inspector.count(&name).await {
            Ok(Some(count)) => {
                findings.extend(finding(plan, &name, count, &session.manifest));
            }
            Ok(None) => {}
            Err(DeadError::MayNotLook { because }) => denied = Some(because),
            Err(error) => {
                inspector.close().await;
                return Err(error);
            }
        }
    }
    inspector.close().await;
    if let Some(because) = denied {
        let what = format!(
            "this user may not count the jobs of every queue: {because}; RabbitMQ 4.3 wants any \
             one of `configure`, `write` and `read` on it"
        );
        findings.push(Finding::note("queues.look", what));
    } else if findings.is_empty() {
        findings.push(Finding::ok("queues.dead", "no dead letters, nothing unrouted"));
    }
    Ok(findings)
}

/// A worker is proposed only if it would consume the queue.
fn backlog(what: &str, queue: &str, forebay: &str, manifest: &Manifest) -> Finding {
    let id = "queues.backlog";
    let file = match &manifest.file {
        Some(file) if manifest.has_functions() => file.display(),
        _ => return Finding::warning(id, format!("{what}; start a worker")),
    };
    if manifest.has_queue(queue) {
        let finding = Finding::warning(id, format!("{what}; start a worker"));
        return finding.mend(format!("{forebay} run"));
    }
    let what = format!(
        "{what}; {file} has no [queues.{queue}], so `forebay run` would not either: add it, with \
         queue = \"{queue}\" at the functions for its kinds, or start the worker that it is meant \
         for; if the name was a mistake, publish the jobs anew to another queue and delete this one \
         with `{forebay} topology delete --queue {queue} --force`"
    );
    Finding::warning(id, what)
}

fn finding(plan: &Plan, name: &str, count: QueueCount, manifest: &Manifest) -> Vec<Finding> {
    let (ready, consumers) = (u64::from(count.ready), u64::from(count.consumers));
    let forebay = &plan.forebay;
    let mut findings = Vec::new();
    match plan.role(name) {
        Role::Jobs(queue) if consumers == 0 && ready > 0 => {
            let jobs = screen::count(ready, "job waits", "jobs wait");
            let what = format!("queue `{name}`: {jobs} and nobody consumes");
            findings.push(backlog(&what, &queue, forebay, manifest));
        }
        Role::Dead(queue) if ready > 0 => {
            let letters = screen::count(ready, "dead letter", "dead letters");
            let what = format!("queue `{name}`: {letters}; see what they died of");
            let many = ready >= MANY_DEAD;
            let finding = if many {
                Finding::warning("queues.dead", what)
            } else {
                Finding::note("queues.dead", what)
            };
            findings.push(finding.mend(format!("{forebay} dead ls --queue {queue}")));
        }
        Role::Unrouted if ready > 0 => {
            let jobs = screen::count(ready, "job", "jobs");
            let what = format!(
                "queue `{name}`: {jobs} whose queue was gone when the delay was over; declare the \
                 queue, then give them another try"
            );
            findings.push(
                Finding::warning("queues.unrouted", what)
                    .mend(plan.apply(None))
                    .mend(format!("{forebay} dead redrive --unrouted --yes")),
            );
        }
        _ => {}
    }
    if consumers > 0 && !matches!(plan.role(name), Role::Jobs(_) | Role::Events) {
        let who = screen::count(consumers, "consumer", "consumers");
        let what = format!("queue `{name}`: {who} where Forebay has none for longer than a look");
        findings.push(match plan.role(name) {
            Role::Level(_) => {
                let what = format!("{what}: delayed jobs are taken before their time");
                Finding::fault("queues.consumers", what)
            }
            _ => Finding::warning("queues.consumers", what),
        });
    }
    findings
}
