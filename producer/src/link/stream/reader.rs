//! A reader of the stream: gives one event after the other, and sees to it that none is missing
//! without a word.
//! In: where to begin. Out: what comes next.

use std::time::Duration;

use bytes::Bytes;
use lapin::message::Delivery;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::life::{Life, Next};
use super::place::{Place, Position, place};
use super::watch::{Finding, Look, QUIET};
use super::{EventLog, Gap, Read, Start, Stored, offset};
use crate::config::Config;
use crate::error::StreamError;
use crate::link::fault::Fault;
use crate::link::transition::{Action, Event as Happened, State};
use crate::telemetry::StreamMeter;
use crate::wire::event::Event;

/// One line in the log for all that were malformed in that time.
const ONE_LINE: Duration = Duration::from_secs(60);

/// A reader of the stream. It holds one channel and up to 200 events that were sent ahead.
///
/// When it loses its connection it goes on after the last event that it gave, as soon as the broker
/// is there again. When nothing comes for a minute, or the place to go on from does not show itself,
/// it looks where the stream ends, over a channel that it opens for that.
#[derive(Debug)]
pub struct Events {
    pub(super) log: EventLog,
    pub(super) state: State,
    began: Instant,
    /// Why it reads nothing now; empty while it does.
    pub(super) trouble: watch::Sender<String>,
    /// The trouble that stands in the log already.
    pub(super) told: Option<String>,
    pub(super) life: Option<Life>,
    /// The next try to attach.
    pub(super) not_before: Option<Instant>,
    pub(super) position: Position,
    /// To be given before anything else.
    tell: Option<Read>,
    came: Option<u64>,
    pub(super) missing: bool,
    /// The broker has cancelled the consumer since something came.
    pub(super) cancelled: bool,
    /// How many consumers in a row were not given what is there.
    pub(super) deaf: u32,
    meter: StreamMeter,
    malformed: u64,
    warned: Option<Instant>,
}

impl Events {
    /// As [`EventLog::read`], over a connection of its own.
    ///
    /// # Errors
    /// As [`EventLog::read`].
    pub async fn open(config: &Config, start: Start) -> Result<Self, StreamError> {
        EventLog::new(config).read(start).await
    }

    pub(super) async fn begin(log: &EventLog, start: Start) -> Result<Self, StreamError> {
        let mut events = Self {
            log: log.clone(),
            state: State::new(log.config.patience()),
            began: Instant::now(),
            trouble: watch::Sender::new("not attached yet".to_owned()),
            told: None,
            life: None,
            not_before: None,
            position: start.into(),
            tell: None,
            came: None,
            missing: false,
            cancelled: false,
            deaf: 0,
            meter: StreamMeter::new(),
            malformed: 0,
            warned: None,
        };
        events.attach().await?;
        Ok(events)
    }

    /// The offset of the newest message that came, an event or not.
    pub fn came(&self) -> Option<u64> {
        self.came
    }

    /// Whether the stream was not there when it was to be read: all that is on it now is newer than
    /// this reader.
    pub fn was_missing(&self) -> bool {
        self.missing
    }

    /// Why it reads nothing now, in words; empty while it does. For whoever looks on while somebody
    /// else waits for the next event.
    pub fn trouble(&self) -> watch::Receiver<String> {
        self.trouble.subscribe()
    }

    /// Waits for what comes next. Cancel-safe: nothing is lost when it is not waited for any more.
    ///
    /// Messages on the stream that are no events of ours are counted, logged and passed over.
    ///
    /// # Errors
    /// [`StreamError`] when the connection was closed by us. Everything else is waited for.
    pub async fn next(&mut self) -> Result<Read, StreamError> {
        loop {
            if let Some(tell) = self.tell.take() {
                return Ok(tell);
            }
            let Some(life) = &mut self.life else {
                self.attach().await?;
                continue;
            };
            if life.wants_ack() {
                life.ack().await;
                continue;
            }
            match life.next().await {
                Next::Delivery(Some(Ok(delivery))) => {
                    if let Some(read) = self.note(delivery) {
                        return Ok(read);
                    }
                }
                Next::Delivery(Some(Err(error))) => self.lose(error.into()),
                Next::Delivery(None) if life.channel.status().connected() => {
                    self.lose(Fault::Cancelled);
                }
                Next::Delivery(None) => self.lose(Fault::Channel("the channel closed".to_owned())),
                Next::Silence => life.look(self.log.link(), self.log.stream()),
                Next::Seen(look) => self.judge(look),
            }
        }
    }

    /// What a delivery means.
    fn note(&mut self, delivery: Delivery) -> Option<Read> {
        let offset = offset(&delivery);
        let Some(life) = &mut self.life else { return None };
        let proving = life.watch.proving;
        life.note(delivery.delivery_tag, offset);
        (self.cancelled, self.deaf) = (false, 0);
        let Some(offset) = offset else {
            self.pass_over("it has no offset: `events` is a queue, and not a stream");
            return None;
        };
        self.came = Some(offset);
        let bytes = Bytes::from(delivery.data);
        let event = Event::decode(&bytes);
        let id = event.as_ref().ok().map(|event| event.id.as_str());
        match place(&self.position, proving, offset, id) {
            Place::Earlier => None,
            Place::Proof => {
                self.proved();
                self.tell.take()
            }
            Place::Lost(gap) => {
                self.lost_place(gap);
                None
            }
            Place::Next => {
                self.proved();
                let event = match event {
                    Ok(event) => event,
                    Err(error) => {
                        self.pass_over(&error.to_string());
                        return self.tell.take();
                    }
                };
                self.meter.read();
                let stored = Stored { offset, event, bytes };
                let told = Some(stored.event.time());
                self.position = Position::After { token: stored.token(), told, resuming: false };
                let read = Read::Event(stored);
                match self.tell.take() {
                    Some(before) => {
                        self.tell = Some(read);
                        Some(before)
                    }
                    None => Some(read),
                }
            }
        }
    }

    /// What a look at the end of the stream means, which was begun because nothing came.
    fn judge(&mut self, look: Look) {
        let Some(life) = &mut self.life else { return };
        match life.watch.judge(&self.position, look) {
            Finding::Wait(time) => life.look_again(time),
            // What comes first still has to be the very first one.
            Finding::Resumed => {
                life.look_again(QUIET);
                self.resumed();
            }
            Finding::Lost(gap) => self.lost_place(gap),
            Finding::Deaf => {
                self.deaf += 1;
                self.lose(Fault::Closed("there are events that the broker does not send".into()));
            }
        }
    }

    /// The place is where it was.
    fn proved(&mut self) {
        if let Some(life) = &mut self.life {
            life.proved();
        }
        self.resumed();
    }

    fn resumed(&mut self) {
        if let Position::After { resuming, .. } = &mut self.position
            && std::mem::take(resuming)
        {
            self.tell = Some(Read::Resumed);
        }
    }

    pub(super) fn lost_place(&mut self, gap: Gap) {
        warn!(because = gap.as_str(), "the place on the stream of events is gone: from the oldest");
        self.life = None;
        self.position = Position::Begin(Start::First);
        self.tell = Some(Read::Gap(gap));
    }

    fn pass_over(&mut self, because: &str) {
        self.meter.malformed();
        self.malformed += 1;
        if self.warned.is_none_or(|at| at.elapsed() >= ONE_LINE) {
            let count = std::mem::take(&mut self.malformed);
            self.warned = Some(Instant::now());
            warn!(because, count, "passed over what is no event of ours on the stream of events");
        }
    }

    fn lose(&mut self, fault: Fault) {
        self.life = None;
        self.cancelled |= fault == Fault::Cancelled;
        let (next, action) = self.state.clone().next(self.lost(fault), fastrand::f64());
        self.state = next;
        if let Action::Wait(pause) = action {
            self.not_before = Some(Instant::now() + pause);
        }
    }

    /// Said once; and a stream that is not there yet is declared without a word.
    pub(super) fn lost(&mut self, fault: Fault) -> Happened {
        let because = fault.to_string();
        if self.told.as_ref() != Some(&because) && !matches!(fault, Fault::Missing(_)) {
            warn!(error = because, "not reading the stream of events");
        }
        self.trouble.send_replace(because.clone());
        self.told = Some(because);
        Happened::Lost(fault, self.began.elapsed())
    }
}
