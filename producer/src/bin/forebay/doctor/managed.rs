//! What only the management API shows: policies, strange bindings, nodes, members, flags.
//! In: what it told. Out: findings.

use serde_json::Value;

use super::finding::{Finding, Level};
use super::live::{Live, Node, Queue};
use super::topology::{Plan, Role};
use crate::management::Api;
use crate::screen::{self, quoted};

/// A worker takes at most so many jobs at a time from one queue.
const MOST_TAKEN: u64 = 1_000;
/// What RabbitMQ gives a quorum queue that asks for nothing else.
const MEMBERS: usize = 3;

pub(super) fn findings(live: &Live, plan: &Plan, api: &Api) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(policies(live, plan));
    for queue in live.queues.iter().filter(|queue| plan.role(&queue.name) != Role::Stranger) {
        findings.extend(members(queue));
        findings.extend(few_members(queue, &live.nodes, &plan.vhost));
        findings.extend(taken(queue));
    }
    findings.extend(strange_bindings(live, plan, api));
    findings.extend(live.nodes.iter().flat_map(node));
    findings.extend(flags(live));
    if !live.untold.is_empty() {
        let what = format!(
            "the management API does not show this user {}; tag the user `monitoring`",
            live.untold.join(", ")
        );
        findings.push(Finding::note("management.untold", what));
    }
    if !findings.iter().any(|finding| finding.level >= Level::Warning) {
        let what = format!(
            "{}: no policy gets in the way, no alarm, all members are online; these figures may be \
             5 s old: look again after a change of policies",
            screen::count(live.nodes.len() as u64, "node", "nodes")
        );
        findings.insert(0, Finding::ok("management.broker", what));
    }
    findings
}

/// Keys of policies that change what a queue is declared to do; queues that suffer in the same way
/// from the same policy are told together.
fn policies(live: &Live, plan: &Plan) -> Vec<Finding> {
    let mut concerns: Vec<(Concern<'_>, Vec<&str>)> = Vec::new();
    for queue in &live.queues {
        let Value::Object(effective) = &queue.effective_policy_definition else { continue };
        let role = plan.role(&queue.name);
        for (key, value) in effective {
            let Some((level, then)) = concern(&role, key, value) else { continue };
            let concern = Concern { owner: owner(queue, live, key), key, value, level, then };
            match concerns.iter_mut().find(|(known, _)| *known == concern) {
                Some((_, queues)) => queues.push(&queue.name),
                None => concerns.push((concern, vec![&queue.name])),
            }
        }
    }
    concerns.iter().map(|(concern, queues)| concern.finding(queues, plan)).collect()
}

/// What a key of a policy does.
#[derive(PartialEq)]
struct Concern<'a> {
    /// How to clear the policy, its name and its pattern.
    owner: Option<(&'static str, &'a str, &'a str)>,
    key: &'a str,
    value: &'a Value,
    level: Level,
    then: &'static str,
}

impl Concern<'_> {
    fn finding(&self, queues: &[&str], plan: &Plan) -> Finding {
        let Self { owner, key, value, level, then } = self;
        let queues: Vec<_> = queues.iter().map(|queue| format!("`{queue}`")).collect();
        let queues = queues.join(", ");
        let Some((clear, name, pattern)) = owner else {
            let what = format!("a policy sets {key}={value} on {queues}: {then}");
            return Finding::new("topology.policy", *level, what);
        };
        let what = format!(
            "policy `{name}` (pattern `{pattern}`) sets {key}={value} on {queues}: {then}; clear \
             it, or narrow its pattern"
        );
        let (vhost, name) = (quoted(&plan.vhost), quoted(name));
        let command = format!("rabbitmqctl {clear} -p {vhost} {name}");
        Finding::new("topology.policy", *level, what).mend(command)
    }
}

/// What a key does to a queue of that role, if it is anything to speak of.
fn concern(role: &Role, key: &str, value: &Value) -> Option<(Level, &'static str)> {
    // How long events are kept is the operator's to say.
    if matches!(role, Role::Stranger | Role::Events) {
        return None;
    }
    const GONE: &str = "what it has no room for is deleted, and nobody is told";
    let keeps = matches!(role, Role::Dead(_) | Role::Unrouted);
    Some(match key {
        "max-length" | "max-length-bytes" => match role {
            Role::Jobs(_) => (
                Level::Warning,
                "when it is full publishes are refused, and delayed jobs for all queues wait \
                 behind those for this one",
            ),
            Role::Level(_) => (Level::Warning, "when it is full delays are refused"),
            _ => (Level::Fault, GONE),
        },
        "message-ttl" => match role {
            Role::Jobs(_) => (Level::Warning, "jobs that wait longer die (`broker: expired`)"),
            // The shorter one counts.
            Role::Level(level) if value.as_u64().is_some_and(|ttl| ttl >= 100 << level) => {
                return None;
            }
            Role::Level(_) => (Level::Fault, "delayed jobs come early"),
            _ => (Level::Fault, "letters that are older are deleted, and nobody is told"),
        },
        "expires" => (Level::Fault, "the queue itself is deleted when nobody uses it"),
        "delivery-limit" if keeps || matches!(role, Role::Level(_)) => {
            (Level::Fault, "each look is a delivery: looking deletes what lies there")
        }
        // The worker moves a suspect away after two.
        "delivery-limit" if value.as_u64().is_some_and(|limit| limit < 10) => {
            (Level::Warning, "the broker gives up jobs before the worker does")
        }
        // Arguments of the queue come before these.
        _ => return None,
    })
}

/// Which policy a key comes from.
fn owner<'a>(queue: &Queue, live: &'a Live, key: &str) -> Option<(&'static str, &'a str, &'a str)> {
    let of = |policies: &'a [super::live::Policy], name: &Option<String>| {
        policies.iter().find(|policy| {
            Some(&policy.name) == name.as_ref() && policy.definition.contains_key(key)
        })
    };
    let operator = of(&live.operator_policies, &queue.operator_policy);
    let operator = operator.map(|policy| ("clear_operator_policy", policy));
    let users = || of(&live.policies, &queue.policy).map(|policy| ("clear_policy", policy));
    let (clear, policy) = operator.or_else(users)?;
    Some((clear, &policy.name, &policy.pattern))
}

fn members(queue: &Queue) -> Option<Finding> {
    let down: Vec<_> =
        queue.members.iter().filter(|member| !queue.online.contains(member)).collect();
    let name = &queue.name;
    if ["down", "minority", "crashed", "stopped"].contains(&queue.state.as_str()) {
        let what = format!("queue `{name}` is {}: start the nodes that hold it", queue.state);
        return Some(Finding::fault("queues.members", what));
    }
    if down.is_empty() {
        return None;
    }
    let down: Vec<_> = down.into_iter().map(String::as_str).collect();
    let what = format!("queue `{name}`: its members on {} are not online", down.join(", "));
    Some(Finding::warning("queues.members", what))
}

/// Members are chosen when a queue is declared: nodes that come later have none.
fn few_members(queue: &Queue, nodes: &[Node], vhost: &str) -> Option<Finding> {
    // Of two members none can be lost either.
    let has_any = nodes.len() >= MEMBERS && !queue.members.is_empty();
    if !has_any || queue.members.len() >= MEMBERS {
        return None;
    }
    let (name, has) = (&queue.name, screen::count(queue.members.len() as u64, "member", "members"));
    let what = format!(
        "queue `{name}` has {has} in a cluster of {} nodes: with {MEMBERS} it would outlive the \
         loss of one",
        nodes.len()
    );
    let without = nodes.iter().filter(|node| node.running && !queue.members.contains(&node.name));
    let mut finding = Finding::warning("queues.few_members", what);
    for node in without.take(MEMBERS - queue.members.len()) {
        // Not `grow NODE all`: what others keep on few nodes on purpose is theirs.
        let (vhost, name, node) = (quoted(vhost), quoted(name), quoted(&node.name));
        finding = finding.mend(format!("rabbitmq-queues add_member -p {vhost} {name} {node}"));
    }
    Some(finding)
}

fn taken(queue: &Queue) -> Option<Finding> {
    let most = MOST_TAKEN * queue.consumers.max(1);
    (queue.messages_unacknowledged > most).then(|| {
        let taken = screen::count(queue.messages_unacknowledged, "job", "jobs");
        let what = format!(
            "queue `{}`: {taken} are taken and not yet acked by {}; a worker of ours takes at most \
             {}: somebody else consumes without a prefetch limit",
            queue.name,
            screen::count(queue.consumers, "consumer", "consumers"),
            screen::thousands(MOST_TAKEN)
        );
        Finding::warning("queues.unacked", what)
    })
}

/// Bindings that nobody declared, from our exchanges or to our queues.
fn strange_bindings(live: &Live, plan: &Plan, api: &Api) -> Vec<Finding> {
    use forebay_producer::wire::topology::{Declaration, Target};
    let ours = |name: &str| {
        plan.declarations
            .iter()
            .any(|one| matches!(one, Declaration::Exchange { name: known, .. } if known == name))
    };
    let declared = |binding: &super::live::Binding| {
        plan.declarations.iter().any(|one| match one {
            Declaration::Binding { from, to, key } => {
                let (Target::Queue(to) | Target::Exchange(to)) = to else { return false };
                *from == binding.source && *to == binding.destination && *key == binding.routing_key
            }
            _ => false,
        })
    };
    // The default exchange is bound to every queue.
    let others = live.bindings.iter().filter(|binding| !binding.source.is_empty());
    let strange = others.filter(|one| !declared(one)).filter(|one| {
        let to_ours =
            one.destination_type == "queue" && plan.role(&one.destination) != Role::Stranger;
        ours(&one.source) || to_ours
    });
    let findings = strange.map(|one| {
        let (source, destination, key) = (&one.source, &one.destination, &one.routing_key);
        // A queue of ours that nobody named is no stranger.
        if ours(source)
            && plan.topology.namespace().len() < destination.len()
            && destination.starts_with(&format!("{}.", plan.topology.namespace()))
        {
            return None;
        }
        let what = format!(
            "{} `{destination}` is bound to exchange `{source}` with key `{key}`, and Forebay has \
             not done that: it gets copies",
            one.destination_type
        );
        let kind = &one.destination_type[..one.destination_type.len().min(1)];
        let path = ["bindings", &plan.vhost, "e", source, kind, destination, &one.properties_key];
        let finding = Finding::warning("topology.binding", what);
        Some(finding.mend(format!("curl -u USER -X DELETE {}", quoted(&api.address(&path)))))
    });
    findings.flatten().collect()
}

fn node(node: &Node) -> Vec<Finding> {
    let (name, quoted) = (&node.name, quoted(&node.name));
    let mut findings = Vec::new();
    if !node.running {
        let what =
            format!("node `{name}` does not run: queues with members there have fewer copies");
        findings.push(Finding::warning("management.node", what));
    }
    if node.mem_alarm {
        let what = format!(
            "node `{name}` has a memory alarm: the broker takes no publishes until it has enough \
             again; see what takes it, then give it more or raise the limit"
        );
        let finding = Finding::fault("management.alarm", what);
        findings.push(finding.mend(format!("rabbitmq-diagnostics -n {quoted} memory_breakdown")));
    }
    if node.disk_free_alarm {
        let what = format!(
            "node `{name}` has a disk alarm: the broker takes no publishes until there is room \
             again; free some, or lower the limit"
        );
        let finding = Finding::fault("management.alarm", what);
        findings.push(finding.mend(format!("rabbitmq-diagnostics -n {quoted} status")));
    }
    if !node.partitions.is_empty() {
        let what = format!("node `{name}` is cut off from others: a network partition");
        let status = format!("rabbitmqctl -n {name} cluster_status");
        findings.push(Finding::fault("management.partition", what).mend(status));
    }
    findings
}

fn flags(live: &Live) -> Vec<Finding> {
    let mut findings = Vec::new();
    let off: Vec<_> = live
        .flags
        .iter()
        .filter(|flag| flag.state == "disabled" && flag.stability != "experimental")
        .map(|flag| flag.name.as_str())
        .collect();
    if off.contains(&"stream_queue") {
        let what = "feature flag stream_queue is off: the broker's own dead-lettering is at most \
                    once without it";
        let finding = Finding::warning("management.flags", what);
        findings.push(finding.mend("rabbitmqctl enable_feature_flag stream_queue"));
    } else if !off.is_empty() {
        let what =
            format!("feature flags are off that the next upgrade may want: {}", off.join(", "));
        let finding = Finding::note("management.flags", what);
        findings.push(finding.mend("rabbitmqctl enable_feature_flag all"));
    }
    if !live.deprecated.is_empty() {
        let names: Vec<_> = live.deprecated.iter().map(|one| one.name.as_str()).collect();
        let what =
            format!("somebody on this broker uses deprecated features: {}", names.join(", "));
        findings.push(Finding::note("management.deprecated", what));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_policy_is_judged_by_what_the_queue_is_for() {
        let (jobs, dead) = (Role::Jobs("mail".to_owned()), Role::Dead("mail".to_owned()));
        for (role, key, value, level) in [
            (&jobs, "max-length", json!(10), Some(Level::Warning)),
            (&dead, "max-length", json!(10), Some(Level::Fault)),
            (&dead, "message-ttl", json!(10), Some(Level::Fault)),
            (&jobs, "message-ttl", json!(10), Some(Level::Warning)),
            (&Role::Level(1), "message-ttl", json!(10), Some(Level::Fault)),
            (&Role::Level(1), "message-ttl", json!(200), None),
            (&Role::Stranger, "expires", json!(10), None),
            (&jobs, "expires", json!(10), Some(Level::Fault)),
            (&jobs, "delivery-limit", json!(5), Some(Level::Warning)),
            (&jobs, "delivery-limit", json!(50), None),
            (&Role::Unrouted, "delivery-limit", json!(50), Some(Level::Fault)),
            (&jobs, "dead-letter-exchange", json!("x"), None),
            (&jobs, "queue-leader-locator", json!("balanced"), None),
        ] {
            assert_eq!(concern(role, key, &value).map(|(level, _)| level), level, "{role:?} {key}");
        }
    }

    #[test]
    fn members_that_are_away_are_named() {
        let queue = |state: &str, online: &[&str]| Queue {
            name: "shop.mail".to_owned(),
            state: state.to_owned(),
            members: ["a", "b", "c"].map(str::to_owned).to_vec(),
            online: online.iter().map(|node| (*node).to_owned()).collect(),
            ..Queue::default()
        };
        assert_eq!(members(&queue("running", &["a", "b", "c"])), None);
        let one = members(&queue("running", &["a", "c"])).unwrap();
        assert!(one.level == Level::Warning && one.what.contains("on b are"), "{one:?}");
        assert_eq!(members(&queue("minority", &["a"])).unwrap().level, Level::Fault);
    }

    #[test]
    fn a_queue_with_fewer_members_than_it_could_have_is_told_with_the_command() {
        let nodes = |count: usize| {
            let node = |n| Node { name: format!("rabbit@{n}"), running: true, ..Node::default() };
            (0..count).map(node).collect::<Vec<_>>()
        };
        let queue = |members: usize| Queue {
            name: "shop.mail".to_owned(),
            members: (0..members).map(|n| format!("rabbit@{n}")).collect(),
            ..Queue::default()
        };
        for (members, count) in [(1, 1), (3, 3), (3, 5), (1, 2), (0, 3)] {
            assert_eq!(few_members(&queue(members), &nodes(count), "/"), None, "{members} {count}");
        }
        let finding = few_members(&queue(1), &nodes(3), "/").unwrap();
        assert_eq!(finding.level, Level::Warning);
        assert_eq!(
            finding.mend,
            [
                "rabbitmq-queues add_member -p / shop.mail rabbit@1",
                "rabbitmq-queues add_member -p / shop.mail rabbit@2"
            ]
        );
    }

    #[test]
    fn alarms_are_faults() {
        let well = Node { name: "a".to_owned(), running: true, ..Node::default() };
        assert!(node(&well).is_empty());
        let sick = Node { mem_alarm: true, disk_free_alarm: true, ..well };
        assert!(node(&sick).iter().all(|finding| finding.level == Level::Fault));
        assert_eq!(node(&sick).len(), 2);
    }
}
