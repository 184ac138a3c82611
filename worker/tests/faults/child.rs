//! The worker process: this test binary, started again, so that a kill is a kill.
//! In: what the site asks for, in one environment variable. Out: a worker that records its runs.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use forebay_producer::{DeadLetters, Filter, Pile, RedriveOptions};
use forebay_worker::{
    Config, Context, Controls, HandlerOptions, JobError, JobResult, Producer, QueueOptions, Retry,
    Worker,
};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time;

use crate::record::{Event, Recorder, Run};
use crate::workload::{NewStep, Script, Step};

/// The variable that makes a process of this binary a child.
pub(crate) const ASKED: &str = "FOREBAY_FAULTS_CHILD";

/// The file in the folder of a run that its waiting jobs wait for.
pub(crate) const GATE: &str = "gate";

/// What a child is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) who: String,
    pub(crate) url: String,
    pub(crate) namespace: String,
    pub(crate) folder: PathBuf,
    pub(crate) role: Role,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Role {
    Works { prefetch: u16, concurrency: usize, grace: Duration, knows_new: bool },
    Redrives { rate: f64 },
}

/// Not a test of its own: what a child process runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(asked) = std::env::var(ASKED) else { return };
    let asked: Asked = serde_json::from_str(&asked).unwrap();
    let filter = "warn,forebay_worker=debug,forebay_producer=debug";
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let config = Config::new(&asked.url).unwrap().namespace(&asked.namespace).unwrap();
    match asked.role {
        Role::Works { .. } => work(&asked, &config).await,
        Role::Redrives { rate } => redrive(&config, rate).await,
    }
}

async fn work(asked: &Asked, config: &Config) {
    let Role::Works { prefetch, concurrency, grace, knows_new } = asked.role else { return };
    let record = Recorder::open(&asked.folder, &asked.who).unwrap();
    let mut stop = signal(SignalKind::terminate()).unwrap();
    let queue = QueueOptions::new().concurrency(concurrency).prefetch(prefetch);
    let retry = Retry { jitter: true, ..Retry::fixed(5, Duration::from_millis(300)) };
    let options = || HandlerOptions::new().retry(retry).timeout(Duration::from_secs(60));
    let mut worker = Worker::builder(record.clone())
        .name(&asked.who)
        .grace(grace)
        .consumer_timeout(Duration::from_secs(24 * 3600))
        .queue("default", queue)
        .handle_with(options(), step);
    if knows_new {
        worker = worker.handle_with(options(), new_step);
    }
    record.note(Event::Started);
    let running = worker.build().unwrap().start(config);
    let controls = running.controls();
    let ending = async {
        stop.recv().await;
        record.note(Event::Gone { how: "told to end".into() });
    };
    tokio::select! {
        () = ending => {}
        () = tell(&record, &controls) => {}
    }
    controls.drain();
    let summary = running.finished().await.unwrap();
    tracing::info!(%summary, "ended");
}

/// Records each change between consuming and not.
async fn tell(record: &Recorder, controls: &Controls) {
    let mut known = None;
    loop {
        for status in controls.queues() {
            if status.because.as_deref() == Some("starting") || known == Some(status.consuming) {
                continue;
            }
            known = Some(status.consuming);
            record.note(match status.because {
                None => Event::Consuming,
                Some(because) => Event::Idle { because },
            });
        }
        time::sleep(Duration::from_millis(5)).await;
    }
}

async fn new_step(job: NewStep, cx: Context<Recorder>) -> JobResult {
    step(job.0, cx).await
}

async fn step(job: Step, cx: Context<Recorder>) -> JobResult {
    let run = Run { attempt: cx.attempt(), redrives: cx.redrives(), crashes: cx.crashes() };
    let mut ending = Ending { record: cx.state(), id: cx.id(), run, end: "dropped" };
    cx.state().note(Event::Begun { id: cx.id().to_owned(), run });
    let again = cx.redelivered() || cx.crashes() > 0;
    let ms = if job.script == Script::Lingers && again { 1 } else { job.ms };
    let time = Duration::from_millis(ms);
    if job.script == Script::Hoards {
        hoard(time);
    }
    time::sleep(time).await;
    while job.script == Script::Waits && !cx.state().folder.join(GATE).exists() {
        time::sleep(Duration::from_millis(20)).await;
    }
    let (end, result) = match job.script {
        Script::Kills => std::process::abort(),
        Script::FailsOnce if cx.attempt() == 1 => ("fail", Err(JobError::retry(because()))),
        Script::Rejects => ("reject", Err(JobError::reject(because()))),
        Script::RejectsOnce if cx.redrives() == 0 => ("reject", Err(JobError::reject(because()))),
        _ => ("ok", Ok(())),
    };
    ending.end = end;
    drop(ending);
    result
}

fn because() -> anyhow::Error {
    anyhow::anyhow!("the script says so")
}

/// Opens files until there is no descriptor left, and keeps them so long, whatever becomes of the
/// job.
fn hoard(time: Duration) {
    std::thread::spawn(move || {
        let open = || File::open("/dev/null");
        let all: Vec<_> = std::iter::repeat_with(open).map_while(Result::ok).take(10_000).collect();
        std::thread::sleep(time);
        drop(all);
    });
}

/// Records the end of a run, also when its handler is dropped.
struct Ending<'a> {
    record: &'a Recorder,
    id: &'a str,
    run: Run,
    end: &'static str,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let (id, run, end) = (self.id.to_owned(), self.run, self.end.to_owned());
        self.record.note(Event::Ended { id, run, end });
    }
}

async fn redrive(config: &Config, rate: f64) {
    let (letters, producer) = (DeadLetters::new(config), Producer::new(config));
    let mut options = RedriveOptions::default();
    options.rate = Some(rate);
    let (pile, all) = (Pile::Queue("default".into()), Filter::default());
    let done = letters.redrive(&pile, &all, 10_000, &options, &producer, |done| {
        tracing::info!(done = done.done, "redriven");
    });
    let done = done.await.unwrap();
    tracing::info!(?done, "all redriven");
    producer.close().await;
}
