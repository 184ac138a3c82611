//! One run of one contestant.
//! In: a case. Out: its figures; a run after which the queue is not as it should be is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future;
use hdrhistogram::Histogram;
use tokio::time;

use super::beam::Beam;
use super::job::now;
use super::order::{Account, Contestant, Event, Order, Task};
use super::record::Run;
use super::scenario::{Case, Figure, Scenario};
use super::screen::Screen;
use super::side::{Place, Sides};
use super::site::Site;

const MB: f64 = 1_000_000.0;
/// How long a worker is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(3);

/// Where runs take place.
pub(crate) struct Ground<'a> {
    pub(crate) site: &'a Site,
    pub(crate) place: &'a Place,
    /// The broker's process, if it is here.
    pub(crate) beam: Option<&'a Beam>,
    pub(crate) screen: &'a Screen,
}

impl Ground<'_> {
    /// Measures once.
    pub(crate) async fn run(&self, case: &Case, who: Contestant) -> anyhow::Result<Run> {
        let run = match case.scenario {
            Scenario::PublishOne
            | Scenario::PublishWindowed
            | Scenario::PublishBulk
            | Scenario::PublishTracked => self.publish(case, who).await,
            Scenario::Latency => self.latency(case, who).await,
            Scenario::Burst => self.burst(case, who).await,
            Scenario::Idle => self.idle(case, who).await,
            Scenario::Start | Scenario::StartFresh => self.start(case, who).await,
            _ => self.drain(case, who).await,
        };
        run.with_context(|| format!("{case}, {}", who.label()))
    }

    async fn drain(&self, case: &Case, who: Contestant) -> anyhow::Result<Run> {
        if who == Contestant::Tracked {
            self.site.renew_events().await?;
            self.site.fill_tracked(case.jobs, case.payload).await?;
        } else {
            self.site.fill(case.jobs, case.payload).await?;
        }
        let mut sides = Sides::start(self.place, &consume(case, who, 0), case.workers).await?;
        sides.all(&Event::Up).await?;
        let before = self.broker();
        sides.go().await?;
        let runs = case.scenario.runs(case.jobs);
        sides.handled(runs, |jobs| self.screen.at(jobs, runs)).await?;
        let accounts = sides.stop().await?;
        self.site.holds(0).await?;
        let mut run = self.figures(&accounts, before);
        self.note_events(case, who, 3, &mut run).await?;
        Ok(run)
    }

    async fn publish(&self, case: &Case, who: Contestant) -> anyhow::Result<Run> {
        let Some(how) = case.scenario.how() else { bail!("it publishes nothing") };
        if who == Contestant::Tracked {
            self.site.renew_events().await?;
        }
        let task = Task::Publish { how, jobs: case.jobs };
        let mut sides = Sides::start(self.place, &order(case, who, task), 1).await?;
        sides.all(&Event::Up).await?;
        let before = self.broker();
        sides.go().await?;
        let accounts = sides.end(|jobs| self.screen.at(jobs, case.jobs)).await?;
        let mut run = self.figures(&accounts, before);
        self.note_events(case, who, 1, &mut run).await?;
        self.site.holds(case.jobs).await?;
        self.site.empty().await?;
        Ok(run)
    }

    async fn latency(&self, case: &Case, who: Contestant) -> anyhow::Result<Run> {
        let per_second = case.per_second.context("it has no rate")?;
        // Connections, caches and the kernel's guesses settle within half a second.
        let warm_up = u64::from(per_second / 2).min(case.jobs / 10);
        let mut consumer = Sides::start(self.place, &consume(case, who, warm_up), 1).await?;
        consumer.go().await?;
        consumer.all(&Event::Working).await?;
        let pace = order(case, Contestant::Forebay, Task::Pace { jobs: case.jobs, per_second });
        let mut pacer = Sides::start(self.place, &pace, 1).await?;
        let before = self.broker();
        pacer.go().await?;
        consumer.handled(case.jobs, |jobs| self.screen.at(jobs, case.jobs)).await?;
        let late = pacer.end(|_| {}).await?.iter().map(|account| account.late).max();
        let accounts = consumer.stop().await?;
        self.site.holds(0).await?;
        let mut run = self.figures(&accounts, before);
        // It is the pace that was asked for.
        run.figures.remove(&Figure::JobsPerSecond);
        run.figures.insert(Figure::PaceLateMs, late.unwrap_or(0) as f64 / 1e6);
        percentiles(&accounts, &mut run.figures)?;
        Ok(run)
    }

    async fn burst(&self, case: &Case, who: Contestant) -> anyhow::Result<Run> {
        let mut sides = Sides::start(self.place, &consume(case, who, 0), 1).await?;
        sides.go().await?;
        sides.all(&Event::Working).await?;
        // A short burst may be over before the first look of the watch.
        let mut backlog = vec![(0.0, self.site.waiting().await?)];
        let (before, began) = (self.broker(), now());
        let all = future::try_join(
            self.site.fill(case.jobs, case.payload),
            sides.handled(case.jobs, |jobs| self.screen.at(jobs, case.jobs)),
        );
        tokio::select! {
            // The other one never ends; a look that is cut off is of no use any more.
            done = all => { done?; }
            () = self.site.watch(began, &mut backlog) => {}
        }
        let accounts = sides.stop().await?;
        self.site.holds(0).await?;
        let mut run = self.figures(&accounts, before);
        let ended = accounts.iter().map(|account| account.ended).max().unwrap_or(began);
        let seconds = ended.saturating_sub(began) as f64 / 1e9;
        run.figures.insert(Figure::Seconds, seconds);
        run.figures.insert(Figure::JobsPerSecond, case.jobs as f64 / seconds);
        let most = backlog.iter().map(|(_, waiting)| *waiting).max().unwrap_or(0);
        run.figures.insert(Figure::PeakBacklog, most.into());
        run.backlog = backlog;
        Ok(run)
    }

    async fn idle(&self, case: &Case, who: Contestant) -> anyhow::Result<Run> {
        let mut sides = Sides::start(self.place, &consume(case, who, 0), 1).await?;
        sides.go().await?;
        sides.all(&Event::Working).await?;
        time::sleep(IDLE).await;
        let accounts = sides.stop().await?;
        let mut run = self.figures(&accounts, None);
        if let Some(bytes) = accounts.iter().map(|account| account.resident).sum::<Option<u64>>() {
            run.figures.insert(Figure::ResidentMb, bytes as f64 / MB);
        }
        Ok(run)
    }

    /// The job waits already, or is published while the process starts.
    async fn start(&self, case: &Case, who: Contestant) -> anyhow::Result<Run> {
        let fresh = case.scenario == Scenario::StartFresh;
        if fresh {
            self.site.clear().await?;
        } else {
            self.site.fill(1, case.payload).await?;
        }
        let began = now();
        let starting = async {
            let mut sides = Sides::start(self.place, &consume(case, who, 0), 1).await?;
            sides.go().await?;
            sides.handled(1, |_| {}).await?;
            anyhow::Ok(sides)
        };
        let publishing = async {
            match fresh {
                true => self.site.fill(1, case.payload).await,
                false => Ok(()),
            }
        };
        let (sides, ()) = future::try_join(starting, publishing).await?;
        let accounts = sides.stop().await?;
        self.site.holds(0).await?;
        let first = accounts.first().map_or(began, |account| account.began);
        let milliseconds = first.saturating_sub(began) as f64 / 1e6;
        Ok(Run { figures: BTreeMap::from([(Figure::StartMs, milliseconds)]), ..Run::default() })
    }

    /// How many events each tracked job has told from its publish on; `expected` is how many it
    /// should have.
    async fn note_events(
        &self,
        case: &Case,
        who: Contestant,
        expected: u64,
        run: &mut Run,
    ) -> anyhow::Result<()> {
        if who == Contestant::Tracked {
            let told = self.site.events(case.jobs * expected).await?;
            run.figures.insert(Figure::Events, f64::from(told) / case.jobs as f64);
        }
        Ok(())
    }

    fn broker(&self) -> Option<f64> {
        self.beam?.cpu_us()
    }

    /// What is true of every run; `before` is the broker's CPU time at its beginning.
    fn figures(&self, accounts: &[Account], before: Option<f64>) -> Run {
        let broker = self.broker().zip(before).map(|(after, before)| after - before);
        Run { figures: common(accounts, broker), backlog: Vec::new() }
    }
}

fn consume(case: &Case, who: Contestant, warm_up: u64) -> Order {
    order(case, who, Task::Consume(case.scenario.work(warm_up)))
}

fn order(case: &Case, who: Contestant, task: Task) -> Order {
    Order {
        contestant: who,
        task,
        queue_type: case.queue_type,
        prefetch: case.prefetch,
        concurrency: case.concurrency,
        payload: case.payload,
    }
}

fn common(accounts: &[Account], broker_us: Option<f64>) -> BTreeMap<Figure, f64> {
    let jobs: u64 = accounts.iter().map(|account| account.handled).sum();
    let mut figures = BTreeMap::new();
    let peak: Option<u64> = accounts.iter().map(|account| account.peak).sum();
    if let Some(peak) = peak {
        figures.insert(Figure::PeakMb, peak as f64 / MB);
    }
    if jobs == 0 {
        return figures;
    }
    let each = |sum: f64| sum / jobs as f64;
    let worked = || accounts.iter().filter(|account| account.handled > 0);
    let began = worked().map(|account| account.began).min().unwrap_or(0);
    let ended = worked().map(|account| account.ended).max().unwrap_or(0);
    if ended > began {
        let seconds = (ended - began) as f64 / 1e9;
        figures.insert(Figure::JobsPerSecond, jobs as f64 / seconds);
    }
    let cpu: u64 = accounts.iter().map(|account| account.cpu_ns).sum();
    figures.insert(Figure::CpuMicros, each(cpu as f64 / 1e3));
    let instructions: Option<u64> = accounts.iter().map(|account| account.instructions).sum();
    if let Some(instructions) = instructions {
        figures.insert(Figure::Instructions, each(instructions as f64));
    }
    if let Some(broker_us) = broker_us {
        figures.insert(Figure::BrokerMicros, each(broker_us));
    }
    if accounts.len() > 1 {
        let least = accounts.iter().map(|account| account.handled).min().unwrap_or(0);
        let even = jobs as f64 / accounts.len() as f64;
        figures.insert(Figure::LeastShare, least as f64 / even);
    }
    figures
}

fn percentiles(accounts: &[Account], figures: &mut BTreeMap<Figure, f64>) -> anyhow::Result<()> {
    let mut all = Histogram::<u64>::new(3)?;
    for (latency, count) in accounts.iter().flat_map(|account| &account.latencies) {
        all.record_n(*latency, *count)?;
    }
    if all.is_empty() {
        bail!("there were no jobs to tell a latency of");
    }
    for (figure, quantile) in [
        (Figure::P50Ms, 0.5),
        (Figure::P90Ms, 0.9),
        (Figure::P99Ms, 0.99),
        (Figure::P999Ms, 0.999),
        (Figure::MaxMs, 1.0),
    ] {
        figures.insert(figure, all.value_at_quantile(quantile) as f64 / 1e3);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_added_up_from_the_first_job_of_any_to_the_last_of_any() {
        let account = |handled, began, ended| Account {
            handled,
            began,
            ended,
            cpu_ns: 1_000_000,
            peak: Some(10_000_000),
            ..Account::default()
        };
        let accounts = [account(100, 1_000_000_000, 2_000_000_000), account(300, 1, 3_000_000_001)];
        let figures = common(&accounts, Some(8_000.0));
        assert_eq!(figures[&Figure::JobsPerSecond], 400.0 / 3.0);
        assert_eq!(figures[&Figure::CpuMicros], 5.0);
        assert_eq!(figures[&Figure::BrokerMicros], 20.0);
        assert_eq!(figures[&Figure::LeastShare], 0.5);
        assert_eq!(figures[&Figure::PeakMb], 20.0);
        assert!(!figures.contains_key(&Figure::Instructions));
    }

    #[test]
    fn percentiles_are_of_all_jobs() {
        let latencies = (1..=1_000).map(|latency| (latency * 1_000, 1)).collect();
        let account = Account { latencies, ..Account::default() };
        let mut figures = BTreeMap::new();
        percentiles(&[account], &mut figures).unwrap();
        let near =
            |figure: Figure, wanted: f64| (figures[&figure] - wanted).abs() <= wanted / 500.0;
        assert!(near(Figure::P50Ms, 500.0) && near(Figure::P99Ms, 990.0), "{figures:?}");
        assert!(near(Figure::MaxMs, 1_000.0), "{figures:?}");
        assert!(percentiles(&[], &mut figures).is_err());
    }
}
