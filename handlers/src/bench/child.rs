//! A measured process: this program once more, with one order.
//! In: standard input, as `order` says. Out: events on standard output; the end of the input ends it.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use forebay_worker::Config;
use tokio::sync::oneshot;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::arguments::Target;
use super::job::Tally;
use super::meter::{self, Meter};
use super::order::{Account, Contestant, Event, GO, Order, Task, Work};
use super::{bare, forebay, pace};

/// How often it says how far it is.
const TICK: Duration = Duration::from_millis(50);

/// What is done within one measured process, and how it talks.
pub(crate) struct Job<'a> {
    pub(crate) config: &'a Config,
    pub(crate) order: &'a Order,
    pub(crate) tally: Arc<Tally>,
    /// Told to end in good order.
    pub(crate) stop: CancellationToken,
}

/// Runs until the order is carried out or the input ends.
pub(crate) fn main(target: &Target) -> ExitCode {
    // Before there is a second thread.
    let meter = Meter::begin();
    match prepare(target).and_then(|(config, order)| run(&config, &order, meter)) {
        Ok(account) => {
            say(&Event::Done(account));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&Event::Failed(format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn prepare(target: &Target) -> anyhow::Result<(Config, Order)> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("failed to read the order")?;
    let order: Order = serde_json::from_str(&line).context("failed to understand the order")?;
    let config = super::config(target).map_err(anyhow::Error::msg)?;
    Ok((config.queue_type("bench", order.queue_type), order))
}

fn run(config: &Config, order: &Order, meter: Meter) -> anyhow::Result<Account> {
    let work = match order.task {
        Task::Consume(work) => work,
        _ => Work::Nothing,
    };
    let tally = Arc::new(Tally::new(work, meter));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let account = runtime.block_on(async {
        let stop = CancellationToken::new();
        let (go, word) = oneshot::channel();
        listen(go, stop.clone());
        say(&Event::Up);
        if word.await.is_err() {
            anyhow::bail!("there was no word to begin");
        }
        let job = Job { config, order, tally: Arc::clone(&tally), stop };
        tokio::select! {
            // Never ends; what it says is said whole.
            () = tell(&tally) => unreachable!("it goes on for ever"),
            account = work_on(&job) => account,
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    account
}

async fn work_on(job: &Job<'_>) -> anyhow::Result<Account> {
    match (job.order.task, job.order.contestant) {
        (Task::Consume(_), Contestant::Forebay | Contestant::Tracked) => {
            forebay::consume(job).await
        }
        (Task::Consume(_), _) => bare::consume(job).await,
        (Task::Publish { how, jobs }, Contestant::Forebay | Contestant::Tracked) => {
            forebay::publish(job, how, jobs).await
        }
        (Task::Publish { jobs, .. }, _) => bare::publish(job, jobs).await,
        (Task::Pace { jobs, per_second }, _) => pace::keep(job, jobs, per_second).await,
    }
}

/// Words from the parent. Its end is a word too: nothing of ours outlives it.
fn listen(go: oneshot::Sender<()>, stop: CancellationToken) {
    std::thread::spawn(move || {
        let mut go = Some(go);
        for line in io::stdin().lock().lines() {
            match line.as_deref() {
                Ok(GO) => _ = go.take().map(|go| go.send(())),
                _ => break,
            }
        }
        stop.cancel();
    });
}

/// Says how far it is, for as long as it is polled.
async fn tell(tally: &Tally) {
    let mut told = 0;
    loop {
        let handled = tally.handled();
        if handled != told {
            told = handled;
            say(&Event::Handled(handled));
        }
        time::sleep(TICK).await;
    }
}

/// One line. Nobody is left to be told when the parent is gone.
pub(crate) fn say(event: &Event) {
    let line = serde_json::to_string(event).expect("an event is plain data");
    _ = writeln!(io::stdout().lock(), "{line}");
}

impl Job<'_> {
    /// What came of it; `resident` was read before anything was taken down.
    pub(crate) fn account(&self, resident: Option<u64>) -> Account {
        self.tally.account(resident)
    }

    /// Waits for the word to stop, and reads how much memory there is then.
    pub(crate) async fn stopped(&self) -> Option<u64> {
        self.stop.cancelled().await;
        meter::resident()
    }
}
