//! Publishes one job for each line, many at a time.
//! In: lines. Out: counts, each bad line by its number, and when it stops before the end the line
//! from which to continue.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use forebay_producer::{Producer, PublishError, PublishOptions, Receipt};
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
use crate::screen;
use crate::template::Template;

/// Jobs in flight.
const WINDOW: usize = 1_000;
/// Bytes in flight; one job may go beyond it.
const WINDOW_BYTES: usize = 32 * 1024 * 1024;
/// After so many bad lines it is the wrong file.
const MOST_BAD: u64 = 1_000;

/// A bulk publish.
pub(crate) struct Bulk {
    pub(crate) kind: String,
    pub(crate) options: PublishOptions,
    pub(crate) source: PathBuf,
    pub(crate) shape: Shape,
    pub(crate) from_line: u64,
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

pub(crate) async fn run(bulk: Bulk, session: &Session) -> anyhow::Result<Exit> {
    let began = Instant::now();
    let lines = lines::open(&bulk.source)?;
    let connected = session.producer().await;
    let producer = connected.with_context(|| continue_from(bulk.from_line, 0))?;
    let bar = screen::progress(lines.total);
    let mut run = Run { ledger: Ledger::from_line(bulk.from_line), bar, began };
    let end = run.publish(&bulk, lines.next, &producer).await;
    run.bar.finish_and_clear();
    let elapsed = run.began.elapsed();
    producer.close().await;
    run.report(end, elapsed, session)
}

struct Run {
    ledger: Ledger,
    bar: ProgressBar,
    began: Instant,
}

impl Run {
    async fn publish(
        &mut self,
        bulk: &Bulk,
        mut lines: tokio::sync::mpsc::Receiver<Line>,
        producer: &Producer,
    ) -> End {
        let mut end = None;
        let mut flying = FuturesUnordered::new();
        let mut bytes = 0;
        let mut redraw = time::interval(Duration::from_millis(200));
        let mut ctrl_c = std::pin::pin!(signal::ctrl_c());
        while end.is_none() || !flying.is_empty() {
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
                Some((line, size, result)) = flying.next() => {
                    bytes -= size;
                    if let Err(error) = self.landed(line, result)
                        && matches!(end, None | Some(End::AllRead))
                    {
                        end = Some(End::Error(error));
                    }
                }
                // Cancel-safe: a tick is not lost.
                _ = redraw.tick() => self.redraw(),
                // Cancel-safe: a line stays in the channel until it is taken.
                next = lines.recv(), if room => match next {
                    None => end = Some(End::AllRead),
                    Some(line) if passed_over(&line, bulk.from_line) => self.bar.inc(line.bytes),
                    Some(line) => {
                        let number = line.number;
                        self.bar.inc(line.bytes);
                        match self.payload(line, &bulk.shape) {
                            Ok(None) => {}
                            Ok(Some(payload)) => {
                                let size = payload.len();
                                bytes += size;
                                let options = bulk.options.clone();
                                let sent = producer.publish_raw(&bulk.kind, payload, options);
                                flying.push(async move { (number, size, sent.await) });
                            }
                            Err(error) => end = Some(End::Error(error)),
                        }
                    }
                },
            }
        }
        end.unwrap_or(End::Interrupted)
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
        result: Result<Receipt, PublishError>,
    ) -> Result<(), anyhow::Error> {
        match result {
            Ok(_) => self.ledger.settle(line, Outcome::Published),
            Err(error) if concerns_one_job(&error) => {
                self.note(format_args!("line {line}: {error}"));
                self.ledger.settle(line, Outcome::Failed);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn report(self, end: End, elapsed: Duration, session: &Session) -> anyhow::Result<Exit> {
        let Ledger { published, bad, failed, .. } = self.ledger;
        let (rate, seconds) = (rate(published, elapsed), elapsed.as_secs_f64());
        let next = self.ledger.continue_from();
        let stopped = !matches!(end, End::AllRead);
        if session.for_people() {
            screen::say(format_args!(
                "{} published, {} bad, {} failed in {seconds:.1}s ({}/s)",
                screen::thousands(published),
                screen::thousands(bad),
                screen::thousands(failed),
                screen::thousands(rate),
            ))?;
        } else {
            screen::say_json(&json!({
                "published": published,
                "bad": bad,
                "failed": failed,
                "elapsed_seconds": (seconds * 1000.0).round() / 1000.0,
                "per_second": rate,
                "continue_from_line": stopped.then_some(next),
            }))?;
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
