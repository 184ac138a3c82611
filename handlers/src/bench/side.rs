//! Measured processes, seen from the one that measures.
//! In: orders. Out: their events; a process that is silent for too long, or dies, is an error with
//! the last lines of its log. None of them outlives this one.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time;
use tokio_util::task::AbortOnDropHandle;

use super::order::{Account, Event, GO, Order, STOP};

/// Longest that a process may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// Lines of its log that are shown when it fails.
const LAST_WORDS: usize = 5;

/// How this program is started once more.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) program: PathBuf,
    /// The manifest, whose `[broker]` counts.
    pub(crate) manifest: PathBuf,
    pub(crate) url: Option<String>,
    pub(crate) namespace: String,
}

/// Some processes with the same order.
pub(crate) struct Sides {
    sides: Vec<Side>,
    events: mpsc::Receiver<(usize, Option<Event>)>,
    handled: Vec<u64>,
    accounts: Vec<Option<Account>>,
}

struct Side {
    _child: Child,
    words: ChildStdin,
    log: Arc<Mutex<VecDeque<String>>>,
    _readers: [AbortOnDropHandle<()>; 2],
}

impl Sides {
    /// Starts `count` processes and gives each the order.
    pub(crate) async fn start(place: &Place, order: &Order, count: usize) -> anyhow::Result<Self> {
        let (tell, events) = mpsc::channel(64);
        let mut sides = Vec::new();
        for number in 0..count {
            let side = Side::start(place, number, tell.clone());
            let mut side = side.context("failed to start a process to measure")?;
            side.say(&serde_json::to_string(order)?).await?;
            sides.push(side);
        }
        Ok(Self { sides, events, handled: vec![0; count], accounts: vec![None; count] })
    }

    /// Waits until all of them have said this.
    pub(crate) async fn all(&mut self, wanted: &Event) -> anyhow::Result<()> {
        let mut missing = self.sides.len();
        while missing > 0 {
            if self.next().await? == *wanted {
                missing -= 1;
            }
        }
        Ok(())
    }

    /// Tells all of them to begin.
    pub(crate) async fn go(&mut self) -> anyhow::Result<()> {
        for side in &mut self.sides {
            side.say(GO).await?;
        }
        Ok(())
    }

    /// Waits until they have handled so many jobs together.
    pub(crate) async fn handled(
        &mut self,
        jobs: u64,
        mut seen: impl FnMut(u64),
    ) -> anyhow::Result<()> {
        while self.handled.iter().sum::<u64>() < jobs {
            self.next().await?;
            seen(self.handled.iter().sum());
        }
        Ok(())
    }

    /// Tells them to stop, and waits for what they took.
    pub(crate) async fn stop(mut self) -> anyhow::Result<Vec<Account>> {
        for side in &mut self.sides {
            side.say(STOP).await?;
        }
        self.end(|_| {}).await
    }

    /// Waits until they end by themselves, and for what they took.
    pub(crate) async fn end(mut self, mut seen: impl FnMut(u64)) -> anyhow::Result<Vec<Account>> {
        while self.accounts.iter().any(Option::is_none) {
            self.next().await?;
            seen(self.handled.iter().sum());
        }
        Ok(self.accounts.into_iter().flatten().collect())
    }

    async fn next(&mut self) -> anyhow::Result<Event> {
        let event = time::timeout(SILENCE, self.events.recv()).await;
        let silent = || anyhow!("a measured process has said nothing for {}s", SILENCE.as_secs());
        let (number, event) = event.map_err(|_| silent())?.ok_or_else(silent)?;
        match event {
            Some(Event::Failed(why)) => bail!("a measured process failed: {why}"),
            None if self.accounts[number].is_none() => {
                let log = &self.sides[number].log;
                let lines: Vec<_> =
                    log.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
                bail!("a measured process died; it said: {}", lines.join(" / "));
            }
            None => Ok(Event::Up),
            Some(event) => {
                match &event {
                    Event::Handled(jobs) => self.handled[number] = *jobs,
                    Event::Done(account) => self.accounts[number] = Some(account.clone()),
                    _ => {}
                }
                Ok(event)
            }
        }
    }
}

impl Side {
    fn start(
        place: &Place,
        number: usize,
        tell: mpsc::Sender<(usize, Option<Event>)>,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(&place.program);
        command
            .arg("bench-side")
            .arg("--config")
            .arg(&place.manifest)
            .env("FOREBAY_NAMESPACE", &place.namespace)
            // Not ours to tell.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(url) = &place.url {
            command.env("AMQP_URL", url);
        }
        // The terminal's Ctrl-C is for us to pass on.
        command.process_group(0);
        let mut child = command.spawn()?;
        let piped = "it was asked for";
        let words = child.stdin.take().expect(piped);
        let (events, lines) =
            (child.stdout.take().expect(piped), child.stderr.take().expect(piped));
        let log = Arc::<Mutex<VecDeque<String>>>::default();
        let readers = [
            AbortOnDropHandle::new(tokio::spawn(hear(events, number, tell))),
            AbortOnDropHandle::new(tokio::spawn(keep(lines, Arc::clone(&log)))),
        ];
        Ok(Self { _child: child, words, log, _readers: readers })
    }

    async fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let sent = self.words.write_all(format!("{line}\n").as_bytes()).await;
        sent.context("failed to talk to a measured process")
    }
}

async fn hear(
    from: impl AsyncRead + Unpin,
    number: usize,
    tell: mpsc::Sender<(usize, Option<Event>)>,
) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(event) = serde_json::from_str(&line)
            && tell.send((number, Some(event))).await.is_err()
        {
            return;
        }
    }
    _ = tell.send((number, None)).await;
}

async fn keep(from: impl AsyncRead + Unpin, log: Arc<Mutex<VecDeque<String>>>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_back(line);
        if log.len() > LAST_WORDS {
            log.pop_front();
        }
    }
}
