//! Publishes one job for each line, many at a time.
//! In: lines. Out: counts, each bad line by its number, and when it stops before the end the line
//! from which to continue.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use forebay_producer::link::after;
use forebay_producer::{Producer, PublishError};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::signal;
use tokio::time::{self, Instant};

use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::ledger::{Ledger, Outcome};
use crate::lines::{self, Content, Line};
use crate::order::{Made, Order};
use crate::spool::gate::Way;
use crate::spool::keeper::Keeper;
use crate::spool::{sender, trouble};
use crate::template::Template;
use crate::{screen, spool, spooled};

/// Jobs in flight.
const WINDOW: usize = 1_000;
/// Bytes in flight; one job may go beyond it.
const WINDOW_BYTES: usize = 32 * 1024 * 1024;
/// After so many bad lines it is the wrong file.
const MOST_BAD: u64 = 1_000;

/// A bulk publish.
pub(crate) struct Bulk<'a> {
    pub(crate) order: Order,
    pub(crate) source: PathBuf,
    pub(crate) shape: Shape,
    pub(crate) from_line: u64,
    /// Where jobs are kept that the broker does not take now.
    pub(crate) spool: Option<&'a Path>,
}

/// How a line becomes the data of a job.
pub(crate) enum Shape {
    /// It is the data.
    Json,
    /// It is put into a template.
    Template(Template),
}

/// Why no further lines are read.
enum End {
    /// There are none.
    AllRead,
    Interrupted,
    Error(anyhow::Error),
}

pub(crate) async fn run(bulk: Bulk<'_>, session: &Session) -> anyhow::Result<Exit> {
    let began = Instant::now();
    let lines = lines::open(&bulk.source)?;
    let mut keeper = bulk.spool.map(Keeper::create).transpose()?;
    let connected = match &mut keeper {
        None => session.producer().await,
        Some(keeper) => begin(keeper, session).await,
    };
    let producer = connected.with_context(|| continue_from(bulk.from_line, 0))?;
    let bar = screen::progress(lines.total);
    let ledger = Ledger::from_line(bulk.from_line);
    let deadline = session.timeout;
    let mut run = Run { ledger, bar, began, keeper, deadline };
    let mut end = run.publish(&bulk, lines.next, &producer).await;
    if let Err(error) = run.write_kept()
        && !matches!(end, End::Error(_))
    {
        end = End::Error(error);
    }
    run.bar.finish_and_clear();
    let elapsed = run.began.elapsed();
    if let Err(error) = run.send_kept(&bulk, &producer, session).await
        && !matches!(end, End::Error(_))
    {
        end = End::Error(error.into());
    }
    producer.close().await;
    run.report(end, elapsed, session)
}

/// Sends what waits in the spool. Without a broker all goes there until there is one.
async fn begin(keeper: &mut Keeper, session: &Session) -> anyhow::Result<Producer> {
    let producer = Producer::new(&session.config);
    let ready = async {
        // A queue that is stuck does not matter here: these jobs have no order.
        spooled::ahead(&keeper.folder, &producer, "", session).await?;
        producer.link().connected(Instant::now() + session.timeout).await?;
        Ok(())
    };
    match session.patiently(ready).await {
        Err(error) if !trouble::is_passing(&error) => return Err(error),
        Err(error) => keeper.shut(0, error),
        Ok(()) => {}
    }
    Ok(producer)
}

struct Run {
    ledger: Ledger,
    bar: ProgressBar,
    began: Instant,
    keeper: Option<Keeper>,
    /// How long each publish waits.
    deadline: Duration,
}

impl Run {
    async fn publish(
        &mut self,
        bulk: &Bulk<'_>,
        mut lines: tokio::sync::mpsc::Receiver<Line>,
        producer: &Producer,
    ) -> End {
        let mut end = None;
        let mut flying = FuturesUnordered::new();
        let mut bytes = 0;
        let mut redraw = time::interval(Duration::from_millis(200));
        let mut ctrl_c = std::pin::pin!(signal::ctrl_c());
        while end.is_none() || !flying.is_empty() {
            let due = self.keeper.as_ref().and_then(Keeper::due);
            let room = end.is_none() && flying.len() < WINDOW && bytes < WINDOW_BYTES;
            tokio::select! {
                biased;
                // Cancel-safe: the handler stays installed.
                _ = &mut ctrl_c => {
                    if matches!(end, Some(End::Interrupted)) {
                        break;
                    }
                    self.note(format_args!("finishing {} jobs in flight…", flying.len()));
                    end = Some(End::Interrupted);
                    ctrl_c.set(signal::ctrl_c());
                }
                // Cancel-safe: what has not ended stays in the set.
                Some((line, size, made, result)) = flying.next() => {
                    bytes -= size;
                    if let Err(error) = self.landed(line, &made, result, bulk)
                        && matches!(end, None | Some(End::AllRead))
                    {
                        end = Some(End::Error(error));
                    }
                }
                // Cancel-safe: a tick is not lost.
                _ = redraw.tick() => self.redraw(),
                // Cancel-safe: nothing is held.
                () = time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Err(error) = self.write_kept()
                        && matches!(end, None | Some(End::AllRead))
                    {
                        end = Some(End::Error(error));
                    }
                }
                // Cancel-safe: a line stays in the channel until it is taken.
                next = lines.recv(), if room => match next {
                    None => end = Some(End::AllRead),
                    Some(line) if passed_over(&line, bulk.from_line) => self.bar.inc(line.bytes),
                    Some(line) => {
                        let number = line.number;
                        self.bar.inc(line.bytes);
                        match self.job(line, bulk, producer) {
                            Ok(None) => {}
                            Ok(Some(made)) => {
                                let size = made.envelope.payload.len();
                                bytes += size;
                                let deadline = after(self.deadline);
                                flying.push(async move {
                                    let sent = made.send(producer, deadline).await;
                                    (number, size, made, sent)
                                });
                            }
                            Err(error) => end = Some(End::Error(error)),
                        }
                    }
                },
            }
        }
        end.unwrap_or(End::Interrupted)
    }

    /// The job in a line that is to be published, if there is one: others go to the spool while
    /// the broker takes none.
    fn job(
        &mut self,
        line: Line,
        bulk: &Bulk<'_>,
        producer: &Producer,
    ) -> anyhow::Result<Option<Made>> {
        let number = line.number;
        let Some(payload) = self.payload(line, &bulk.shape)? else { return Ok(None) };
        let made = bulk.order.make(payload)?;
        let Some(keeper) = &mut self.keeper else { return Ok(Some(made)) };
        if keeper.gate.way(number) == Way::Broker {
            return Ok(Some(made));
        }
        match producer.check(&made.envelope) {
            Ok(()) => {
                if keeper.add(number, bulk.order.keep(&made)) {
                    self.write_kept()?;
                }
            }
            Err(error) => self.landed(number, &made, Err(error), bulk)?,
        }
        Ok(None)
    }

    /// Writes what is to be kept; its lines are done then.
    fn write_kept(&mut self) -> anyhow::Result<()> {
        let Some(keeper) = &mut self.keeper else { return Ok(()) };
        for line in keeper.write()? {
            self.ledger.settle(line, Outcome::Spooled);
        }
        Ok(())
    }

    /// If the broker takes jobs again, those of this run that were kept meanwhile are sent.
    async fn send_kept(
        &mut self,
        bulk: &Bulk<'_>,
        producer: &Producer,
        session: &Session,
    ) -> Result<(), Stop> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        if self.ledger.spooled == 0 || keeper.gate.is_shut() {
            return Ok(());
        }
        // Whoever holds it sends them for us.
        if let Some(locked) = keeper.folder.lock_for_sending(Instant::now()).await? {
            let run = &bulk.order.run;
            let sent = sender::send(&keeper.folder, &locked, producer, run, session).await?;
            self.ledger.published += sent.of_run;
            self.ledger.spooled -= sent.of_run;
            spool::tell_the_rest(&sent, session);
        }
        Ok(())
    }

    /// The data of the job in a line, if there is one; a bad line is named.
    fn payload(&mut self, line: Line, shape: &Shape) -> anyhow::Result<Option<String>> {
        let number = line.number;
        match data(line.content, shape) {
            Data::Job(payload) => return Ok(Some(payload)),
            Data::Blank => self.ledger.settle(number, Outcome::Blank),
            Data::Bad(why) => {
                self.note(format_args!("line {number}: {why}"));
                self.ledger.settle(number, Outcome::Bad);
                if self.ledger.bad == MOST_BAD {
                    let many = screen::thousands(MOST_BAD);
                    let why = format!("{many} bad lines: is it the right file?");
                    return Err(Stop::Failed(why).into());
                }
            }
            Data::Broken(why) => return Err(Stop::Failed(why).into()),
        }
        Ok(None)
    }

    /// Notes how a publish ended. An error that is not the line's own ends the run.
    fn landed(
        &mut self,
        line: u64,
        made: &Made,
        result: Result<(), PublishError>,
        bulk: &Bulk<'_>,
    ) -> Result<(), anyhow::Error> {
        match (result.map_err(anyhow::Error::new), &mut self.keeper) {
            (Ok(()), keeper) => {
                if let Some(keeper) = keeper {
                    keeper.gate.open();
                }
                self.ledger.settle(line, Outcome::Published);
            }
            (Err(error), keeper) if error.downcast_ref().is_some_and(concerns_one_job) => {
                if let Some(keeper) = keeper {
                    keeper.gate.told_nothing(line);
                }
                self.note(format_args!("line {line}: {error}"));
                self.ledger.settle(line, Outcome::Failed);
            }
            (Err(error), Some(keeper)) if trouble::is_passing(&error) => {
                keeper.shut(line, error);
                if keeper.add(line, bulk.order.keep(made)) {
                    self.write_kept()?;
                }
            }
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }

    fn report(self, end: End, elapsed: Duration, session: &Session) -> anyhow::Result<Exit> {
        let Ledger { published, spooled, bad, failed, .. } = self.ledger;
        let (rate, seconds) = (rate(published, elapsed), elapsed.as_secs_f64());
        let next = self.ledger.continue_from();
        let stopped = !matches!(end, End::AllRead);
        if session.for_people() {
            let kept = match (&self.keeper, spooled) {
                (None, _) | (_, 0) => String::new(),
                (Some(_), kept) => format!("{} spooled, ", screen::thousands(kept)),
            };
            screen::say(format_args!(
                "{} published, {kept}{} bad, {} failed in {seconds:.1}s ({}/s)",
                screen::thousands(published),
                screen::thousands(bad),
                screen::thousands(failed),
                screen::thousands(rate),
            ))?;
        } else {
            screen::say_json(&json!({
                "published": published,
                "spooled": spooled,
                "bad": bad,
                "failed": failed,
                "elapsed_seconds": (seconds * 1000.0).round() / 1000.0,
                "per_second": rate,
                "continue_from_line": stopped.then_some(next),
            }))?;
        }
        if let Some(keeper) = self.keeper.as_ref().filter(|_| spooled > 0) {
            let what = screen::count(spooled, "job is", "jobs are");
            spooled::say(&what, &keeper.because(), &keeper.folder);
        }
        let hint = continue_from(next, self.ledger.published_beyond());
        match end {
            End::AllRead if bad + failed == 0 => Ok(Exit::Fine),
            End::AllRead => Ok(Exit::Failed),
            End::Interrupted => Err(Stop::Failed(hint).into()),
            End::Error(error) => Err(error.context(hint)),
        }
    }

    fn redraw(&self) {
        let published = self.ledger.published;
        let rate = screen::thousands(rate(published, self.began.elapsed()));
        let published = screen::thousands(published);
        self.bar.set_message(format!("{published} published, {rate}/s"));
    }

    /// Says something without tearing the progress bar.
    fn note(&self, line: impl std::fmt::Display) {
        self.bar.suspend(|| screen::note(line));
    }
}

/// Whether an earlier run has dealt with the line. That reading ended there is news all the same.
fn passed_over(line: &Line, from_line: u64) -> bool {
    line.number < from_line && !matches!(line.content, Content::Broken(_))
}

#[derive(Debug, PartialEq, Eq)]
enum Data {
    Job(String),
    Blank,
    Bad(String),
    Broken(String),
}

fn data(content: Content, shape: &Shape) -> Data {
    let text = match content {
        Content::Text(text) => text,
        Content::Bad(why) => return Data::Bad(why),
        Content::Broken(why) => return Data::Broken(format!("cannot read any further: {why}")),
    };
    match shape {
        Shape::Template(_) if text.is_empty() => Data::Blank,
        Shape::Template(template) => Data::Job(template.fill(&text)),
        Shape::Json if text.trim().is_empty() => Data::Blank,
        Shape::Json => match serde_json::from_str::<Value>(&text) {
            Ok(_) => Data::Job(text),
            Err(why) => Data::Bad(format!("not JSON: {}", column_only(&why))),
        },
    }
}

/// The parser's words; "line 1" is left out, because the line has another number.
fn column_only(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

/// Whether only this job is the reason: others may well be published.
fn concerns_one_job(error: &PublishError) -> bool {
    matches!(error, PublishError::TooLarge { .. } | PublishError::Unacceptable { .. })
}

fn rate(jobs: u64, elapsed: Duration) -> u64 {
    (jobs as f64 / elapsed.as_secs_f64().max(0.001)) as u64
}

fn continue_from(line: u64, published_beyond: usize) -> String {
    let twice = match published_beyond as u64 {
        0 => String::new(),
        beyond => {
            let beyond = screen::count(beyond, "job", "jobs");
            format!("; {beyond} after it will then be published a second time")
        }
    };
    format!("stopped before the end (continue with --from-line {line}{twice})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template;

    fn read(text: &str, shape: &Shape) -> Data {
        data(Content::Text(text.to_owned()), shape)
    }

    #[test]
    fn a_line_of_json_is_the_job_as_it_stands() {
        for line in ["{\"a\": 1}", "[1]", "-5", "null", " \"x\" "] {
            assert_eq!(read(line, &Shape::Json), Data::Job(line.to_owned()));
        }
        assert_eq!(read(" \t", &Shape::Json), Data::Blank);
        let Data::Bad(why) = read("{\"a\" 1}", &Shape::Json) else { panic!() };
        assert_eq!(why, "not JSON: expected `:` at column 6");
    }

    #[test]
    fn a_line_of_text_keeps_its_blanks() {
        let shape = Shape::Template(Template::parse(template::PATH).unwrap());
        assert_eq!(read(" a ", &shape), Data::Job("{\"path\": \" a \"}".to_owned()));
        assert_eq!(read("", &shape), Data::Blank);
    }

    #[test]
    fn the_hint_names_the_line_and_what_would_come_twice() {
        assert_eq!(continue_from(7, 0), "stopped before the end (continue with --from-line 7)");
        let hint = continue_from(7, 1);
        assert!(hint.ends_with("; 1 job after it will then be published a second time)"), "{hint}");
    }
}
