//! Follows the stream for the whole process.
//! In: the stream, from where the window is to begin. Out: the hub's window, kept up to date.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use forebay_producer::{Config, EventLog, Events, Inspector, Read, Start, Stored, StreamError};
use tokio::sync::watch;
use tokio::time;

use super::entry::Entry;
use super::hall::Hall;
use super::replay::Replay;
use crate::telemetry::TailMeter;

/// The newest event of a stream comes within this time, if there is one and the broker is not slow.
const NEWEST: Duration = Duration::from_secs(1);
/// So many times as long nothing comes from a reader that is to have something.
const PATIENCE: u32 = 5;
/// Events that were written together come one after the other.
const TOGETHER: Duration = Duration::from_millis(30);

pub(crate) struct Tail {
    pub(crate) config: Config,
    pub(crate) log: EventLog,
    pub(crate) hall: Arc<Mutex<Hall>>,
    pub(crate) replay: Replay,
    /// How far back the window is to reach.
    pub(crate) age: Duration,
    /// For how long a stream must look empty.
    pub(crate) empty_for: Duration,
}

impl Tail {
    /// Follows the stream; `ready` is called when the window is up to date, with what keeps it from
    /// being so later on.
    pub(crate) async fn run(
        &self,
        ready: impl FnOnce(watch::Receiver<String>),
    ) -> Result<(), StreamError> {
        let mut events = self.begin().await?;
        let began = Instant::now();
        // What was written together with the newest one of the beginning. On a busy stream something
        // comes for ever.
        while began.elapsed() < NEWEST
            && let Ok(read) = time::timeout(TOGETHER, events.next()).await
        {
            self.note(read?);
        }
        ready(events.trouble());
        let meter = TailMeter::new();
        loop {
            let read = events.next().await?;
            if let Read::Event(stored) = &read {
                meter.read(stored.event.time());
            }
            self.note(read);
        }
    }

    /// A reader that has read everything up to now.
    async fn begin(&self) -> Result<Events, StreamError> {
        let head = self.lock().window.head().clone();
        if !head.is_beginning() {
            // Not the first try: on from where that one has come.
            return self.log.read(Start::After(head.token())).await;
        }
        let mut newest = self.log.read(Start::Last).await?;
        if newest.was_missing() {
            return self.read_from_nothing().await;
        }
        let mut empty_since: Option<Instant> = None;
        loop {
            if let Some(Read::Event(stored)) = soon(&mut newest).await? {
                return self.up_to(newest, stored).await;
            }
            if let Some(end) = newest.came() {
                if let Some(events) = self.up_to_no_event(end).await? {
                    return Ok(events);
                }
                newest = self.log.read(Start::Last).await?;
                continue;
            }
            // Silence alone proves nothing: the broker may just have started.
            empty_since = match self.is_empty().await {
                true => empty_since.or_else(|| Some(Instant::now())),
                false => None,
            };
            if empty_since.is_some_and(|since| since.elapsed() >= self.empty_for) {
                return self.read_from_nothing().await;
            }
        }
    }

    /// There is nothing on the stream yet.
    async fn read_from_nothing(&self) -> Result<Events, StreamError> {
        self.lock().begin(None);
        self.log.read(Start::First).await
    }

    async fn up_to(&self, newest: Events, last: Stored) -> Result<Events, StreamError> {
        let since = SystemTime::now() - self.age;
        if last.event.time() >= since
            && let Some(events) = self.all_from(Start::Since(since), last.offset).await?
        {
            return Ok(events);
        }
        // What was read, if anything, ends somewhere before.
        self.lock().forget();
        self.note(Read::Event(last));
        Ok(newest)
    }

    /// The newest messages are no events of ours: whatever stands before them is the newest one.
    /// `None`: the stream has become another one meanwhile.
    async fn up_to_no_event(&self, end: u64) -> Result<Option<Events>, StreamError> {
        for start in [Start::Since(SystemTime::now() - self.age), Start::First] {
            let all = start == Start::First;
            if let Some(events) = self.all_from(start, end).await? {
                let mut hall = self.lock();
                let nothing = hall.window.head().is_beginning();
                if nothing && all {
                    hall.begin(None);
                }
                if all || !nothing {
                    return Ok(Some(events));
                }
            }
            self.lock().forget();
        }
        Ok(None)
    }

    /// Reads from there up to that offset; `None` when it does not come there.
    async fn all_from(&self, start: Start, end: u64) -> Result<Option<Events>, StreamError> {
        let mut events = self.log.read(start).await?;
        let (mut came, mut silent) = (None, 0);
        // By the broker's clock it may be older than by ours, and not come at all.
        while silent < PATIENCE {
            if let Some(read) = soon(&mut events).await? {
                self.note(read);
            }
            if events.came() >= Some(end) {
                return Ok(Some(events));
            }
            silent = if events.came() == came { silent + 1 } else { 0 };
            came = events.came();
        }
        Ok(None)
    }

    /// As the broker counts, every 5 s.
    async fn is_empty(&self) -> bool {
        let inspector = Inspector::on(self.log.link().clone(), &self.config);
        let stream = self.config.topology().events();
        matches!(inspector.count(&stream).await, Ok(Some(count)) if count.ready == 0)
    }

    fn note(&self, read: Read) {
        match read {
            Read::Event(stored) => self.lock().push(Entry::new(stored), Instant::now()),
            Read::Gap(gap) => {
                let mut hall = self.lock();
                hall.begin(Some(gap));
                self.replay.reset();
            }
            _ => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Hall> {
        self.hall.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reader gives within a second of being attached; until it is, it takes its time.
async fn soon(events: &mut Events) -> Result<Option<Read>, StreamError> {
    let mut trouble = events.trouble();
    tokio::select! {
        read = events.next() => return read.map(Some),
        _ = trouble.wait_for(String::is_empty) => {}
    }
    time::timeout(NEWEST, events.next()).await.ok().transpose()
}
