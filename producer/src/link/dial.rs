//! Which of several hosts we connect to.
//! In: the hosts, and which of them failed lately. Out: a connection to the first that answers, or
//! what each of them said.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::uri::AMQPUri;
use tokio::time::{self, Instant};
use tracing::debug;

use super::fault::Fault;
use crate::config::address;

/// Longest that one round of tries takes.
const DEADLINE: Duration = Duration::from_secs(15);
/// How long the newest try stays alone, and how many there are for each host.
const COMPANY: Duration = Duration::from_secs(1);
const TRIES: usize = 3;
/// A host that failed is tried after the others for so long.
const SHUNNED: Duration = Duration::from_secs(60);

/// The hosts, with what is remembered of them.
pub(super) struct Dialer {
    hosts: Vec<AMQPUri>,
    failed: Vec<Option<Instant>>,
    /// The host of the newest connection.
    newest: Option<usize>,
}

impl Dialer {
    pub(super) fn new(hosts: &[AMQPUri]) -> Self {
        Self { hosts: hosts.to_vec(), failed: vec![None; hosts.len()], newest: None }
    }

    /// The host of the newest connection, as `host:port`.
    pub(super) fn host(&self) -> Option<String> {
        self.newest.map(|place| address(&self.hosts[place]))
    }

    /// Connects to the first host that answers.
    ///
    /// # Errors
    /// One fault for all of them, which tells what each of them said.
    pub(super) async fn dial<T, F>(&mut self, connect: impl Fn(AMQPUri) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let now = Instant::now();
        let shunned =
            self.failed.iter().map(|at| at.map(|at| now - at).filter(|ago| *ago < SHUNNED));
        let turns = order(&shunned.collect::<Vec<_>>());
        let (answered, faults) =
            race(&turns, DEADLINE, |place| connect(self.hosts[place].clone())).await;
        for (place, fault) in &faults {
            debug!(host = address(&self.hosts[*place]), %fault, "cannot connect");
            self.failed[*place] = Some(Instant::now());
        }
        match answered {
            Some((place, connection)) => {
                (self.failed[place], self.newest) = (None, Some(place));
                Ok(connection)
            }
            None => Err(self.together(faults)),
        }
    }

    /// The newest connection is lost: its host's turn comes last, and the fault tells which it was.
    pub(super) fn lost(&mut self, fault: Fault) -> Fault {
        match self.newest.take() {
            Some(place) => {
                self.failed[place] = Some(Instant::now());
                self.together(vec![(place, fault)])
            }
            None => fault,
        }
    }

    /// One fault for several; one that more patience cannot mend is what counts.
    fn together(&self, mut faults: Vec<(usize, Fault)>) -> Fault {
        if self.hosts.len() == 1
            && let Some((_, fault)) = faults.pop()
        {
            return fault;
        }
        // Not in the order of the tries: what is the same as before should read the same.
        faults.sort_by_key(|(place, _)| *place);
        let text =
            |(place, fault): &(usize, Fault)| format!("{}: {fault}", address(&self.hosts[*place]));
        let text = faults.iter().map(text).collect::<Vec<_>>().join("; ");
        let any = |is: fn(&Fault) -> bool| faults.iter().any(|(_, fault)| is(fault));
        if any(|fault| matches!(fault, Fault::Denied(_))) {
            Fault::Denied(text)
        } else if any(|fault| matches!(fault, Fault::Vhost(_))) {
            Fault::Vhost(text)
        } else if faults.iter().all(|(_, fault)| matches!(fault, Fault::Setup(_))) {
            Fault::Setup(text)
        } else {
            Fault::Connection(text)
        }
    }
}

/// At random, so that clients spread over the hosts; then those that failed lately, the latest last.
fn order(failed_ago: &[Option<Duration>]) -> Vec<usize> {
    let mut places: Vec<_> = (0..failed_ago.len()).collect();
    fastrand::shuffle(&mut places);
    places.sort_by_key(|place| failed_ago[*place].map(std::cmp::Reverse));
    places
}

/// Asks the hosts in turn: after one that refuses the next at once, beside one that is silent the
/// next after a second. The first that answers wins; the others are dropped, which closes their
/// sockets. Each has up to three tries: a socket that closes while the client library works on its
/// answer to `connection.start` leaves a try without an end (lapin 4.12.3 takes the waiting promise
/// out of its list for that time), and a path may be half-open from the start.
async fn race<T, F: Future<Output = Result<T, Fault>>>(
    turns: &[usize],
    wait: Duration,
    connect: impl Fn(usize) -> F,
) -> (Option<(usize, T)>, Vec<(usize, Fault)>) {
    let deadline = Instant::now() + wait;
    let mut tries = FuturesUnordered::new();
    let mut faults: Vec<(usize, Fault)> = Vec::new();
    let mut rounds = turns.iter().copied().cycle().take(turns.len() * TRIES);
    while faults.len() < turns.len() {
        let refused = |place: &usize| faults.iter().any(|(known, _)| known == place);
        let next = rounds.find(|place| !refused(place));
        if let Some(place) = next {
            let connecting = connect(place);
            tries.push(async move { (place, connecting.await) });
        }
        let alone = if next.is_some() { deadline.min(Instant::now() + COMPANY) } else { deadline };
        tokio::select! {
            // Cancel-safe: a try that has not ended stays in the set.
            Some((place, answer)) = tries.next() => match answer {
                Ok(answer) => return (Some((place, answer)), faults),
                Err(fault) if !refused(&place) => faults.push((place, fault)),
                Err(_) => {}
            },
            // Cancel-safe: nothing is held.
            () = time::sleep_until(alone) => if Instant::now() >= deadline { break },
        }
    }
    let silent = Fault::Silent(humantime::format_duration(wait).to_string());
    for place in turns {
        if !faults.iter().any(|(known, _)| known == place) {
            faults.push((*place, silent.clone()));
        }
    }
    (None, faults)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future;

    use super::*;
    use crate::config::Config;

    fn refusal() -> Fault {
        Fault::Connection("refused".to_owned())
    }

    fn dialer(url: &str) -> Dialer {
        Dialer::new(&Config::new(url).unwrap().hosts)
    }

    #[test]
    fn hosts_that_failed_lately_have_their_turn_last_and_the_others_in_any_order() {
        let ago = |seconds| Some(Duration::from_secs(seconds));
        let mut first = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let order = order(&[ago(1), None, ago(30), None]);
            assert_eq!(order[2..], [2, 0]);
            first.insert(order[0]);
        }
        assert_eq!(first.into_iter().collect::<Vec<_>>(), [1, 3]);
    }

    #[tokio::test]
    async fn a_host_that_refuses_is_followed_at_once_and_not_asked_again() {
        let asked = RefCell::new(Vec::new());
        let (answered, faults) = race(&[0, 1, 2], DEADLINE, |place| {
            asked.borrow_mut().push(place);
            future::ready(if place == 2 { Ok("well") } else { Err(refusal()) })
        })
        .await;
        assert_eq!((answered, faults.len()), (Some((2, "well")), 2));
        assert_eq!(asked.into_inner(), [0, 1, 2]);
        let none = race(&[0, 1], DEADLINE, |_| future::ready(Err::<(), _>(refusal()))).await;
        assert_eq!(none, (None, vec![(0, refusal()), (1, refusal())]));
    }

    #[tokio::test]
    async fn beside_a_silent_host_another_is_asked() {
        let (answered, faults) = race(&[0, 1], DEADLINE, |place| async move {
            if place == 0 { future::pending().await } else { Ok("well") }
        })
        .await;
        assert_eq!((answered, faults), (Some((1, "well")), Vec::new()));
    }

    #[tokio::test]
    async fn the_only_host_has_a_second_try_beside_a_silent_one() {
        let asked = RefCell::new(0);
        let (answered, _) = race(&[0], DEADLINE, |_| {
            *asked.borrow_mut() += 1;
            let silent = *asked.borrow() == 1;
            async move { if silent { future::pending().await } else { Ok("well") } }
        })
        .await;
        assert_eq!(answered, Some((0, "well")));
    }

    #[tokio::test]
    async fn silent_hosts_are_told_when_the_time_is_over() {
        let wait = Duration::from_millis(50);
        let (answered, faults) = race(&[1, 0], wait, |place| async move {
            if place == 0 { future::pending().await } else { Err::<(), _>(refusal()) }
        })
        .await;
        assert_eq!(answered, None);
        assert_eq!(faults, [(1, refusal()), (0, Fault::Silent("50ms".to_owned()))]);
    }

    #[tokio::test]
    async fn the_fault_names_each_host_with_its_reason() {
        let mut dialer = dialer("amqp://a:1,b:2,c:3");
        let refuse = |uri: AMQPUri| {
            let fault = match uri.authority.host.as_str() {
                "b" => Fault::Denied("ACCESS_REFUSED".to_owned()),
                _ => refusal(),
            };
            future::ready(Err::<(), _>(fault))
        };
        let told = dialer.dial(refuse).await.unwrap_err();
        let text = "a:1: refused; b:2: ACCESS_REFUSED; c:3: refused";
        assert_eq!(told, Fault::Denied(text.to_owned()));
    }

    #[tokio::test]
    async fn the_only_host_needs_no_name() {
        let mut dialer = dialer("amqp://a");
        let told = dialer.dial(|_| future::ready(Err::<(), _>(refusal()))).await;
        assert_eq!(told, Err(refusal()));
    }

    #[tokio::test]
    async fn after_a_loss_the_other_host_comes_first() {
        let mut dialer = dialer("amqp://a:1,b:2");
        for _ in 0..20 {
            let before = dialer.dial(|uri| future::ready(Ok(uri.authority.host))).await.unwrap();
            let host = dialer.host().unwrap();
            assert!(dialer.lost(refusal()).to_string().starts_with(&host));
            let after = dialer.dial(|uri| future::ready(Ok(uri.authority.host))).await.unwrap();
            assert_ne!(before, after);
        }
    }
}
