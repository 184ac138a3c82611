//! Confirmed, mandatory, windowed publishing that outlives connections.
//! In: messages, each with a deadline. Out: one verdict each. What a lost connection leaves without
//! a verdict is sent again under the same id until its deadline.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{self, Instant};
use tokio_util::task::TaskTracker;

use super::connection::Link;
use super::fault::Fault;
use super::io;
use super::window::{self, Message, Sent};

/// Messages that one channel has in flight.
const WINDOW: usize = 256;
/// Two channels taking turns hide the wait at the end of a window.
const LANES: usize = 2;
/// With the two windows in flight a producer holds 1,000 jobs or 8 MiB before `publish` itself
/// waits: back-pressure, not growth.
const WAITING_JOBS: usize = 1_000 - LANES * WINDOW;
const WAITING_BYTES: usize = 8 * 1024 * 1024;
/// How often a lane without a connection looks which callers still wait.
const LOOK: Duration = Duration::from_secs(1);
/// Longest that the broker may take to open a channel.
const OPENING: Duration = Duration::from_secs(10);

/// Hands messages to the lanes.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    requests: mpsc::Sender<Request>,
    bytes: Arc<Semaphore>,
    /// Everybody who waits for a verdict.
    callers: TaskTracker,
    link: Link,
}

/// What became of a publish that got an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Confirmed,
    Unroutable,
    Refused,
    /// The broker closed the channel over this very message.
    Objected(Fault),
}

/// No answer within the deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoAnswer {
    pub(crate) may_have_arrived: bool,
    pub(crate) because: String,
}

#[derive(Debug)]
struct Request {
    message: Message,
    answer: oneshot::Sender<Result<Answer, NoAnswer>>,
    /// A connection was lost while it was under way: whatever the broker says of the next try, the
    /// one before may have arrived.
    doubtful: bool,
    /// Its channel was closed while it was under way, mostly over another message: a refusal of the
    /// next try says nothing of the one before. What is said of a message alone on its channel holds.
    tried: bool,
    claim: Arc<Claim>,
    _bytes: OwnedSemaphorePermit,
}

/// Who was first: the lane that sends the message, or the caller that stops waiting for it. So
/// "it was not sent" is never said of a message that goes out a moment later.
#[derive(Debug, Default)]
struct Claim(AtomicU8);

impl Claim {
    const WAITING: u8 = 0;
    const SENT: u8 = 1;
    const GONE: u8 = 2;

    /// The lane is about to send it. `false`: the caller has gone.
    fn send(&self) -> bool {
        self.settle(Self::SENT) != Self::GONE
    }

    /// The caller goes. `true`: it was sent before.
    fn leave(&self) -> bool {
        self.settle(Self::GONE) == Self::SENT
    }

    fn settle(&self, state: u8) -> u8 {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        match self.0.compare_exchange(Self::WAITING, state, success, failure) {
            Ok(_) => state,
            Err(first) => first,
        }
    }
}

impl Publisher {
    pub(crate) fn new(link: Link) -> Self {
        let (requests, waiting) = mpsc::channel(WAITING_JOBS);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..LANES {
            let lane = Lane {
                link: link.clone(),
                waiting: Arc::clone(&waiting),
                again: Vec::new(),
                channel: None,
                alone: false,
            };
            io::handle().spawn(lane.run());
        }
        let bytes = Arc::new(Semaphore::new(WAITING_BYTES));
        Self { requests, bytes, callers: TaskTracker::new(), link }
    }

    /// Waits for the verdict until `deadline`. Dropping the future does not recall the message.
    pub(crate) async fn publish(
        &self,
        message: Message,
        deadline: Instant,
    ) -> Result<Answer, NoAnswer> {
        let _caller = self.callers.token();
        let claim = Arc::new(Claim::default());
        let wait = async {
            let weight = message.payload.len().clamp(1, WAITING_BYTES) as u32;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(weight).await.ok()?;
            let (answer, verdict) = oneshot::channel();
            let claim = Arc::clone(&claim);
            let request =
                Request { message, answer, doubtful: false, tried: false, claim, _bytes: bytes };
            self.requests.send(request).await.ok()?;
            verdict.await.ok()
        };
        match time::timeout_at(deadline, wait).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(self.no_answer(&claim, "the producer was closed")),
            Err(_) => Err(self.no_answer(&claim, "the broker did not confirm it")),
        }
    }

    /// Waits until nobody waits for a verdict any more, at most until `deadline`.
    pub(crate) async fn idle(&self, deadline: Instant) {
        self.callers.close();
        _ = time::timeout_at(deadline, self.callers.wait()).await;
    }

    fn no_answer(&self, claim: &Claim, otherwise: &str) -> NoAnswer {
        let may_have_arrived = claim.leave();
        let trouble = self.link.trouble();
        let because = if trouble.is_empty() { otherwise.to_owned() } else { trouble };
        NoAnswer { may_have_arrived, because }
    }
}

/// The one task that owns a publishing channel.
struct Lane {
    link: Link,
    /// The lanes take turns at it: whoever holds it gathers the next window.
    waiting: Arc<Mutex<mpsc::Receiver<Request>>>,
    /// Taken, but without a verdict yet.
    again: Vec<Request>,
    channel: Option<Channel>,
    /// The broker closed the channel over one message of a window: one by one until it is found.
    alone: bool,
}

impl Lane {
    /// Ends when every producer is gone and nothing is left to send.
    async fn run(mut self) {
        while self.gather().await {
            let Some(channel) = self.channel().await else {
                if self.link.is_over() {
                    // There will be no answer, and no pause before the next try either: whoever
                    // waits learns it by losing the request.
                    self.again.clear();
                }
                continue;
            };
            let mut window = self.next_window();
            window.retain(|request| request.claim.send());
            let messages: Vec<_> = window.iter().map(|request| &request.message).collect();
            let verdicts = window::publish(&channel, &messages, || self.link.is_blocked()).await;
            self.settle(window, verdicts);
        }
    }

    /// Sees to it that there is something to send. `false`: never again.
    async fn gather(&mut self) -> bool {
        self.again.retain(|request| !request.answer.is_closed());
        if !self.again.is_empty() {
            return true;
        }
        self.alone = false;
        self.waiting.lock().await.recv_many(&mut self.again, WINDOW).await > 0
    }

    /// The lane's channel in confirm mode; `None` after a while without a connection.
    async fn channel(&mut self) -> Option<Channel> {
        if self.link.is_blocked() {
            // What is sent now arrives when the alarm is over, long after its caller was told that
            // it was not confirmed. And each try to open a channel would leave one behind.
            let mut status = self.link.status();
            let over = status.wait_for(|status| status.blocked.is_none());
            _ = time::timeout(LOOK, over).await;
            return None;
        }
        if let Some(channel) = &self.channel
            && channel.status().connected()
        {
            return Some(channel.clone());
        }
        self.link.connected(Instant::now() + LOOK).await.ok()?;
        let deadline = Instant::now() + OPENING;
        let channel = self.link.channel(deadline).await.ok()?.channel;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        time::timeout_at(deadline, confirms).await.ok()?.ok()?;
        self.channel = Some(channel.clone());
        Some(channel)
    }

    /// Takes what goes out together: all, or up to the second message with an id that is in it
    /// already, because returns are told apart by id.
    fn next_window(&mut self) -> Vec<Request> {
        let end = if self.alone { 1 } else { before_a_repeated_id(&self.again) };
        let rest = self.again.split_off(end);
        std::mem::replace(&mut self.again, rest)
    }

    fn settle(&mut self, window: Vec<Request>, verdicts: Vec<Sent>) {
        let only_one = window.len() == 1;
        let mut unknown = Vec::new();
        for (mut request, sent) in window.into_iter().zip(verdicts) {
            let answer = match sent {
                Sent::Confirmed => Answer::Confirmed,
                Sent::Unroutable => Answer::Unroutable,
                Sent::Refused => Answer::Refused,
                Sent::Unknown(fault) if fault.closes_channel_only() && only_one => {
                    Answer::Objected(fault)
                }
                Sent::Unknown(fault) => {
                    self.alone |= fault.closes_channel_only();
                    request.doubtful |= matches!(fault, Fault::Connection(_) | Fault::Silent(_));
                    request.tried |= !matches!(fault, Fault::Closed(_));
                    unknown.push(request);
                    continue;
                }
            };
            let answer = match answer {
                Answer::Refused if request.tried => or_doubt(answer),
                answer if request.doubtful => or_doubt(answer),
                answer => Ok(answer),
            };
            // Nobody waits any more: the verdict is nobody's business.
            _ = request.answer.send(answer);
        }
        if !unknown.is_empty() {
            // Also after a silent window: its late confirms must not be taken for later ones.
            self.channel = None;
            unknown.append(&mut self.again);
            self.again = unknown;
        }
    }
}

/// What the broker does not take now it may have taken before. Given back for want of a queue is
/// given back all the same: it is declared, and the next try decides.
fn or_doubt(answer: Answer) -> Result<Answer, NoAnswer> {
    let refusal = match &answer {
        Answer::Confirmed | Answer::Unroutable | Answer::Objected(Fault::Missing(_)) => {
            return Ok(answer);
        }
        Answer::Refused => "the broker refused it".to_owned(),
        Answer::Objected(fault) => fault.to_string(),
    };
    let because = format!("a try before may have arrived, and then: {refusal}");
    Err(NoAnswer { may_have_arrived: true, because })
}

fn before_a_repeated_id(requests: &[Request]) -> usize {
    let mut seen = HashSet::with_capacity(requests.len());
    let repeated = requests.iter().position(|request| !seen.insert(&request.message.id));
    repeated.unwrap_or(requests.len())
}
