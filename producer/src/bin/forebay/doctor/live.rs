//! What the management API tells of a virtual host.
//! In: the API. Out: plain data, and looks at declarations that need no further question.

use forebay_producer::link::examine::{Difference, Look};
use forebay_producer::wire::topology::{Declaration, Target};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::management::Api;

/// Everything that was asked for.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) queues: Vec<Queue>,
    exchanges: Vec<Exchange>,
    pub(super) bindings: Vec<Binding>,
    pub(super) policies: Vec<Policy>,
    pub(super) operator_policies: Vec<Policy>,
    pub(super) nodes: Vec<Node>,
    pub(super) flags: Vec<Flag>,
    pub(super) deprecated: Vec<Deprecated>,
    /// What it would not tell, and why.
    pub(super) untold: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) arguments: Map<String, Value>,
    pub(super) policy: Option<String>,
    pub(super) operator_policy: Option<String>,
    pub(super) effective_policy_definition: Value,
    pub(super) messages_unacknowledged: u64,
    pub(super) consumers: u64,
    pub(super) members: Vec<String>,
    pub(super) online: Vec<String>,
    pub(super) state: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Exchange {
    name: String,
    r#type: String,
    durable: bool,
    arguments: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Binding {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) destination_type: String,
    pub(super) routing_key: String,
    pub(super) properties_key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) pattern: String,
    pub(super) definition: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) running: bool,
    pub(super) mem_alarm: bool,
    pub(super) disk_free_alarm: bool,
    pub(super) partitions: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Flag {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) stability: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Deprecated {
    pub(super) name: String,
}

/// Asks for all of it. What a user may not see, or an old broker does not know, is left out.
pub(super) async fn ask(api: &Api, vhost: &str) -> anyhow::Result<Live> {
    let mut untold = Vec::new();
    // Without these there is nothing to compare: an error.
    let mut live = Live {
        queues: api.get(&["queues", vhost], None).await?,
        exchanges: api.get(&["exchanges", vhost], None).await?,
        bindings: api.get(&["bindings", vhost], None).await?,
        ..Live::default()
    };
    live.policies = or_none(api.get(&["policies", vhost], None).await, "policies", &mut untold);
    let operator = api.get(&["operator-policies", vhost], None).await;
    live.operator_policies = or_none(operator, "operator policies", &mut untold);
    live.nodes = or_none(api.get(&["nodes"], None).await, "nodes", &mut untold);
    live.flags = or_none(api.get(&["feature-flags"], None).await, "feature flags", &mut untold);
    // Only from 3.13 on.
    live.deprecated = api.get(&["deprecated-features", "used"], None).await.unwrap_or_default();
    live.untold = untold;
    Ok(live)
}

fn or_none<T>(told: anyhow::Result<Vec<T>>, what: &str, untold: &mut Vec<String>) -> Vec<T> {
    told.unwrap_or_else(|_| {
        untold.push(what.to_owned());
        Vec::new()
    })
}

impl Live {
    /// As [`Examiner::look`](forebay_producer::link::examine::Examiner::look), and bindings too.
    pub(super) fn look(&self, declaration: &Declaration) -> Look {
        match declaration {
            Declaration::Queue { name, arguments } => {
                let Some(queue) = self.queues.iter().find(|queue| queue.name == *name) else {
                    return Look::Missing;
                };
                let mut differences = compared(arguments, &queue.arguments);
                differences.extend(fixed("durable", &true, &queue.durable));
                differences.extend(fixed("auto_delete", &false, &queue.auto_delete));
                Look::There(differences)
            }
            Declaration::Exchange { name, kind, arguments } => {
                let Some(exchange) = self.exchanges.iter().find(|one| one.name == *name) else {
                    return Look::Missing;
                };
                let mut differences = compared(arguments, &exchange.arguments);
                differences.extend(fixed("durable", &true, &exchange.durable));
                differences.extend(fixed("type", *kind, exchange.r#type.as_str()));
                Look::There(differences)
            }
            Declaration::Binding { from, to, key } => {
                let is = |binding: &Binding| {
                    let (kind, name) = match to {
                        Target::Queue(name) => ("queue", name),
                        Target::Exchange(name) => ("exchange", name),
                        _ => return false,
                    };
                    binding.source == *from
                        && binding.destination == *name
                        && binding.destination_type == kind
                        && binding.routing_key == *key
                };
                if self.bindings.iter().any(is) { Look::There(Vec::new()) } else { Look::Missing }
            }
            _ => Look::There(Vec::new()),
        }
    }
}

fn compared(
    declared: &[(&'static str, impl ToString)],
    live: &Map<String, Value>,
) -> Vec<Difference> {
    let declared: Vec<_> =
        declared.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect();
    let mut differences = Vec::new();
    for (name, value) in &declared {
        let is = live.get(name).map(spelled);
        if is.as_ref() != Some(value) {
            differences.push(Difference {
                argument: name.clone(),
                declared: Some(value.clone()),
                live: is,
            });
        }
    }
    for (name, value) in live {
        if !declared.iter().any(|(known, _)| known == name) {
            differences.push(Difference {
                argument: name.clone(),
                declared: None,
                live: Some(spelled(value)),
            });
        }
    }
    differences
}

fn fixed<T: PartialEq + ToString + ?Sized>(
    name: &str,
    declared: &T,
    live: &T,
) -> Option<Difference> {
    (declared != live).then(|| Difference {
        argument: name.to_owned(),
        declared: Some(declared.to_string()),
        live: Some(live.to_string()),
    })
}

/// Text without its quotes.
fn spelled(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_producer::{QueueType, Topology};
    use serde_json::json;

    fn live(queue: Value) -> Live {
        Live { queues: vec![serde_json::from_value(queue).unwrap()], ..Live::default() }
    }

    fn of_unrouted() -> Declaration {
        let topology = Topology::new("shop").unwrap();
        topology.for_queue("mail", QueueType::Quorum).remove(1)
    }

    #[test]
    fn every_argument_is_compared_in_both_directions() {
        let arguments = json!({ "x-queue-type": "classic", "x-max-length": 10 });
        let look =
            live(json!({ "name": "shop.unrouted", "durable": true, "arguments": arguments }))
                .look(&of_unrouted());
        let Look::There(differences) = look else { panic!("it is there") };
        let told: Vec<_> = differences
            .iter()
            .map(|one| (one.argument.as_str(), one.declared.as_deref(), one.live.as_deref()))
            .collect();
        assert_eq!(
            told,
            [
                ("x-queue-type", Some("quorum"), Some("classic")),
                ("x-delivery-limit", Some("2147483647"), None),
                ("x-max-length", None, Some("10")),
            ]
        );
    }

    #[test]
    fn what_is_as_declared_has_no_difference_and_what_is_not_there_is_missing() {
        let arguments = json!({ "x-queue-type": "quorum", "x-delivery-limit": 2_147_483_647 });
        let queue = json!({ "name": "shop.unrouted", "durable": true, "arguments": arguments });
        assert_eq!(live(queue).look(&of_unrouted()), Look::There(vec![]));
        assert_eq!(Live::default().look(&of_unrouted()), Look::Missing);
    }
}
