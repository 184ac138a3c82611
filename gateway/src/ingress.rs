//! From a client's wish to a job on its queue.
//! In: who asks, and for what. Out: the broker's confirm, or a refusal. What is asked for again under
//! the same key is answered as before and not published again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use forebay_producer::{Producer, PublishError, PublishOptions, Token};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::auth::Caller;
use crate::pattern::Pattern;
use crate::refusal::{Code, Refusal};
use crate::request::Publish;
use crate::settings::PublishSettings;
use crate::traffic;

/// Ids of jobs with a key are made within this name space: they are the same in every gateway.
const KEYS: Uuid = Uuid::from_u128(0x6f72_6562_6179_4b65_8ba9_6a1d_0f5e_3c27);
/// How long the answer to a publish is kept, and how many are at most. What is older is known from
/// the stream.
const KEPT: Duration = Duration::from_secs(300);
const MOST_KEPT: usize = 20_000;

/// What clients may publish where.
#[derive(Debug)]
pub(crate) struct Rules {
    queues: Vec<String>,
    routes: Vec<(Pattern, String)>,
    max_delay: Duration,
}

/// A job as it will be published.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) queue: String,
    /// Whether the client has chosen a key, so that it may ask again.
    pub(crate) keyed: bool,
    kind: String,
    payload: bytes::Bytes,
    options: PublishOptions,
}

/// The answer to a publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Published {
    /// Job id.
    pub(crate) job: String,
    /// The queue it waits on, or will once its delay is over.
    pub(crate) queue: String,
    /// Whether it was published before, under the same key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) repeated: bool,
    /// From here on all that happens to the job can be followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
}

impl Rules {
    pub(crate) fn new(settings: &PublishSettings) -> Self {
        let routes = settings.routes.iter();
        // The longest pattern says the most.
        let mut routes: Vec<_> = routes.map(|(pattern, queue)| (pattern, queue.clone())).collect();
        routes.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.len()));
        let routes = routes.into_iter().map(|(pattern, queue)| (Pattern::new(pattern), queue));
        Self {
            queues: settings.queues.clone(),
            routes: routes.collect(),
            max_delay: settings.max_delay,
        }
    }

    /// What would be published; pure but for the id of a job without a key.
    pub(crate) fn plan(&self, caller: &Caller, publish: Publish) -> Result<Plan, Refusal> {
        caller.may_publish(&publish.kind)?;
        let queue = self.queue(&publish)?;
        let owner = caller.owner();
        let mut options = PublishOptions::new().queue(&queue).track(true).owner(owner);
        if let Some(ms) = publish.delay_ms {
            let delay = Duration::from_millis(ms);
            if delay > self.max_delay {
                let most = humantime::format_duration(self.max_delay);
                return Err(Refusal::bad(
                    format!("`delay_ms` is more than {most}"),
                    "ask for less; max_delay in [publish] of gateway.toml allows more",
                ));
            }
            options = options.delay(delay);
        }
        if let Some(priority) = publish.priority {
            options = options.priority(priority);
        }
        let id = match &publish.key {
            None => Uuid::now_v7().to_string(),
            Some(key) => {
                let id = id_for([owner, caller.subject(), &publish.kind, key]);
                // A worker that keeps keys runs it once even if two gateways published it at once.
                options = options.idempotency_key(&id);
                id
            }
        };
        let (kind, payload) = (publish.kind, publish.payload);
        options = options.id(&id);
        Ok(Plan { id, queue, keyed: publish.key.is_some(), kind, payload, options })
    }

    fn queue(&self, publish: &Publish) -> Result<String, Refusal> {
        match &publish.queue {
            None => {
                let route = self.routes.iter().find(|(pattern, _)| pattern.matches(&publish.kind));
                Ok(route.map_or_else(|| "default".to_owned(), |(_, queue)| queue.clone()))
            }
            Some(queue) if self.queues.contains(queue) => Ok(queue.clone()),
            Some(queue) => Err(Refusal::forbidden(
                format!("jobs may not be published to queue `{queue}` from here"),
                "leave `queue` out, or add the queue to `queues` in [publish] of gateway.toml",
            )),
        }
    }
}

/// The id of the job that somebody means: owner, subject, kind and key.
fn id_for(meant: [&str; 4]) -> String {
    // Lengths keep ("a", "bc") and ("ab", "c") apart.
    let name: String = meant.iter().map(|part| format!("{}:{part}", part.len())).collect();
    Uuid::new_v5(&KEYS, name.as_bytes()).to_string()
}

type Verdict = Result<Published, Refusal>;

/// Publishes, each id once at a time.
#[derive(Debug)]
pub(crate) struct Ingress {
    producer: Producer,
    flights: Arc<Mutex<Flights>>,
    tasks: TaskTracker,
}

/// What is being published, and what was a moment ago.
#[derive(Debug, Default)]
struct Flights {
    by_id: HashMap<String, watch::Receiver<Option<Verdict>>>,
    landed: VecDeque<(Instant, String)>,
}

impl Ingress {
    pub(crate) fn new(producer: Producer, tasks: TaskTracker) -> Self {
        Self { producer, flights: Arc::default(), tasks }
    }

    /// Publishes, or joins in waiting for somebody who publishes the same. `known`: the stream has
    /// it already, behind this place and on this queue. The job is published even if the client goes away meanwhile.
    pub(crate) async fn publish(
        &self,
        plan: Plan,
        token: Option<String>,
        known: Option<(Token, Option<String>)>,
    ) -> Verdict {
        if let Some((before, queue)) = known.filter(|_| !self.in_flight(&plan.id)) {
            let queue = queue.unwrap_or(plan.queue);
            let token = Some(before.to_string());
            return Ok(Published { job: plan.id, queue, repeated: true, token });
        }
        let (mut landing, first) = self.take_off(plan, token);
        let landed = landing.wait_for(Option::is_some).await;
        let verdict = landed.ok().and_then(|verdict| verdict.clone());
        let verdict = verdict.unwrap_or_else(|| Err(Refusal::unavailable("the gateway ends")));
        verdict.map(|published| Published { repeated: !first, ..published })
    }

    fn in_flight(&self, id: &str) -> bool {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).by_id.contains_key(id)
    }

    /// Begins, unless somebody has; and whether it was us.
    fn take_off(
        &self,
        plan: Plan,
        token: Option<String>,
    ) -> (watch::Receiver<Option<Verdict>>, bool) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(landing) = flights.by_id.get(&plan.id) {
            return (landing.clone(), false);
        }
        let (land, landing) = watch::channel(None);
        flights.by_id.insert(plan.id.clone(), landing.clone());
        let (producer, flights) = (self.producer.clone(), Arc::clone(&self.flights));
        self.tasks.spawn(async move {
            let (id, keyed) = (plan.id.clone(), plan.keyed);
            let verdict = send(&producer, plan, token).await;
            let keep = keyed && verdict.is_ok();
            land.send_replace(Some(verdict));
            let mut flights = flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.landed(id, keep, Instant::now());
        });
        (landing, true)
    }
}

impl Flights {
    fn landed(&mut self, id: String, keep: bool, now: Instant) {
        if keep {
            self.landed.push_back((now, id));
        } else {
            self.by_id.remove(&id);
        }
        while let Some((at, _)) = self.landed.front() {
            if self.landed.len() <= MOST_KEPT && now.saturating_duration_since(*at) < KEPT {
                break;
            }
            if let Some((_, id)) = self.landed.pop_front() {
                self.by_id.remove(&id);
            }
        }
    }
}

async fn send(producer: &Producer, plan: Plan, token: Option<String>) -> Verdict {
    let Plan { id, kind, payload, options, .. } = plan;
    match producer.publish_raw(&kind, payload, options).await {
        Ok(receipt) => {
            traffic::published(&Ok(()));
            debug!(job.id = receipt.id, job.kind = kind, "published for a client");
            Ok(Published { job: receipt.id, queue: receipt.queue, repeated: false, token })
        }
        Err(error) => {
            let refusal = refused(&error);
            traffic::published(&Err(refusal.code()));
            warn!(job.id = id, job.kind = kind, %error, "not published for a client");
            Err(refusal)
        }
    }
}

/// What a client is told; names and words of the broker are for the log.
fn refused(error: &PublishError) -> Refusal {
    match error {
        PublishError::Unconfirmed { may_have_arrived: true, .. } => Refusal::new(
            Code::Unconfirmed,
            "the broker has not confirmed the job in time; it may be on its queue",
            "publish again with the same `key`; without one it may run twice",
        )
        .retry_after(Duration::from_secs(1)),
        PublishError::Unconfirmed { .. } => {
            Refusal::unavailable("the broker is out of reach; nothing was published")
        }
        PublishError::TooLarge { .. } => Refusal::new(
            Code::TooLarge,
            "the job is larger than the broker takes",
            "send less, or a reference to where it is",
        ),
        PublishError::Option { option, why, .. } => {
            Refusal::bad(format!("`{option}` cannot be used: {why}"), "correct it")
        }
        PublishError::Name(error) => Refusal::bad(error.to_string(), "correct it"),
        PublishError::Delay(error) => Refusal::bad(error.to_string(), "ask for less"),
        _ => Refusal::new(
            Code::Refused,
            "the broker did not take the job; it is not on its queue",
            "tell the operator: the gateway's log says why",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tests::caller;

    fn rules() -> Rules {
        let routes = [("mail.*", "mail"), ("mail.bulk.*", "slow"), ("*", "rest")];
        let routes = routes.map(|(pattern, queue)| (pattern.to_owned(), queue.to_owned()));
        let queues = vec!["default".to_owned(), "mail".to_owned()];
        let settings = PublishSettings { queues, routes: routes.into(), ..Default::default() };
        Rules::new(&settings)
    }

    fn publish(kind: &str, key: Option<&str>) -> Publish {
        Publish {
            kind: kind.to_owned(),
            payload: "{}".into(),
            key: key.map(str::to_owned),
            queue: None,
            delay_ms: None,
            priority: None,
        }
    }

    #[test]
    fn a_kind_goes_where_the_longest_pattern_says() {
        let (rules, ada) = (rules(), caller("ada", &["*"], &[], false));
        for (kind, queue) in [("mail.send", "mail"), ("mail.bulk.send", "slow"), ("a.b", "rest")] {
            assert_eq!(rules.plan(&ada, publish(kind, None)).unwrap().queue, queue, "{kind}");
        }
        let plain = Rules::new(&PublishSettings::default());
        assert_eq!(plain.plan(&ada, publish("a.b", None)).unwrap().queue, "default");
    }

    #[test]
    fn a_client_may_name_the_queues_that_are_listed() {
        let (rules, ada) = (rules(), caller("ada", &["*"], &[], false));
        let to = |queue: &str| Publish { queue: Some(queue.into()), ..publish("a.b", None) };
        assert_eq!(rules.plan(&ada, to("mail")).unwrap().queue, "mail");
        assert_eq!(rules.plan(&ada, to("slow")).unwrap_err().code(), Code::Forbidden);
    }

    #[test]
    fn what_is_not_granted_is_not_published() {
        let ada = caller("ada", &["mail.*"], &[], true);
        let refused = rules().plan(&ada, publish("note.take", None)).unwrap_err();
        assert_eq!(refused.code(), Code::Forbidden);
        let late = Publish { delay_ms: Some(u64::MAX), ..publish("mail.send", None) };
        assert_eq!(rules().plan(&ada, late).unwrap_err().code(), Code::BadRequest);
    }

    #[test]
    fn a_key_means_the_same_job_for_the_same_subject_and_kind_alone() {
        let id = |owner, kind, key| {
            let caller = caller(owner, &["*"], &[], false);
            rules().plan(&caller, publish(kind, Some(key))).unwrap().id
        };
        assert_eq!(id("ada", "a.b", "k"), id("ada", "a.b", "k"));
        for (owner, kind, key) in
            [("bob", "a.b", "k"), ("ada", "a.c", "k"), ("ada", "a.b", "l"), ("ad", "aa.b", "k")]
        {
            assert_ne!(id("ada", "a.b", "k"), id(owner, kind, key));
        }
        let ada = caller("ada", &["*"], &[], false);
        let plan = || rules().plan(&ada, publish("a.b", None)).unwrap().id;
        assert_ne!(plan(), plan(), "without a key each is a job of its own");
    }

    #[test]
    fn answers_are_kept_for_a_while_and_not_without_end() {
        let (mut flights, start) = (Flights::default(), Instant::now());
        let (_land, landing) = watch::channel(None);
        for n in 0..MOST_KEPT + 10 {
            flights.by_id.insert(n.to_string(), landing.clone());
            flights.landed(n.to_string(), true, start);
        }
        assert_eq!(flights.by_id.len(), MOST_KEPT);
        flights.by_id.insert("failed".into(), landing.clone());
        flights.landed("failed".into(), false, start);
        assert!(!flights.by_id.contains_key("failed"), "it may be tried again");
        flights.by_id.insert("late".into(), landing);
        flights.landed("late".into(), true, start + KEPT);
        assert_eq!(flights.by_id.len(), 1);
    }
}
