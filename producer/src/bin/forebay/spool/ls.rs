//! `forebay spool ls`: what waits in a spool.
//! In: a folder. Out: how many jobs of each kind, how large, since when; nothing is changed.

use std::collections::BTreeMap;

use clap::Args;
use forebay_producer::wire::envelope::now_ms;
use serde_json::{Value, json};

use super::folder::Folder;
use super::scan::Piece;
use super::{Place, flush_command};
use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::{moment, screen};

/// Show what waits in a spool, by kind and queue
#[derive(Args)]
#[command(after_help = "\
It needs no broker and changes nothing.

Examples:
  forebay spool ls --spool /var/spool/forebay
  forebay spool ls --output json | jq .jobs
  forebay spool ls --jobs")]
pub(crate) struct Ls {
    #[command(flatten)]
    place: Place,

    /// Each job on a line of its own, oldest first
    #[arg(long)]
    jobs: bool,
}

/// Jobs of one kind for one queue.
#[derive(Default)]
struct Heap {
    jobs: u64,
    bytes: u64,
    oldest_ms: u64,
}

/// What the whole file holds.
#[derive(Default)]
struct Contents {
    heaps: BTreeMap<(String, String, String), Heap>,
    jobs: u64,
    bytes: u64,
    damaged: u64,
    each: Vec<Value>,
}

pub(super) fn run(verb: &Ls, session: &Session) -> anyhow::Result<Exit> {
    let folder = verb.place.folder()?;
    let mut contents = Contents::default();
    for piece in folder.scan()? {
        contents.add(piece.map_err(|error| folder.unreadable(&error))?, verb.jobs);
    }
    if session.for_people() {
        contents.tell(verb.jobs)?;
        if contents.jobs > 0 {
            screen::note(format_args!(
                "{} in {}; `{}` sends them",
                sum(contents.jobs, contents.bytes),
                folder.path().display(),
                flush_command(folder.path())
            ));
        } else {
            screen::note(format_args!("nothing waits in {}", folder.path().display()));
        }
    } else {
        screen::say_json(&contents.json(&folder, verb.jobs))?;
    }
    if contents.damaged > 0 {
        let damaged = screen::count(contents.damaged, "byte is", "bytes are");
        let file = folder.file();
        screen::note(format_args!(
            "{damaged} damaged in {}: a flush sets them aside",
            file.display()
        ));
    }
    if let Some((file, bytes)) = folder.set_aside() {
        let bytes = screen::count(bytes, "byte", "bytes");
        screen::note(format_args!("{bytes} of damaged jobs were set aside in {}", file.display()));
    }
    Ok(Exit::Fine)
}

impl Contents {
    fn add(&mut self, piece: Piece, each: bool) {
        let (range, kept) = match piece {
            Piece::Job { range, sent: false, kept } => (range, kept),
            Piece::Damaged(range) => {
                self.damaged += range.end - range.start;
                return;
            }
            // Another process may be writing right now.
            Piece::Job { .. } | Piece::Torn(_) => return,
        };
        let bytes = range.end - range.start;
        self.jobs += 1;
        self.bytes += bytes;
        if each {
            self.each.push(json!({
                "id": kept.id,
                "kind": kept.kind,
                "queue": kept.queue,
                "namespace": kept.namespace,
                "bytes": bytes,
                "published_at_ms": kept.published_at,
                "not_before_ms": kept.not_before,
                "expires_at_ms": kept.expires_at,
            }));
        }
        let heap = self.heaps.entry((kept.namespace, kept.kind, kept.queue)).or_default();
        let oldest = if heap.jobs == 0 { u64::MAX } else { heap.oldest_ms };
        heap.oldest_ms = oldest.min(kept.published_at);
        heap.jobs += 1;
        heap.bytes += bytes;
    }

    fn tell(&self, each: bool) -> Result<(), Stop> {
        let now = now_ms();
        if self.jobs == 0 {
            return Ok(());
        }
        if each {
            let text =
                |job: &Value, field: &str| job[field].as_str().unwrap_or_default().to_owned();
            let rows = self.each.iter().map(|job| {
                let at = job["published_at_ms"].as_u64().unwrap_or_default();
                let not_before =
                    job["not_before_ms"].as_u64().map_or_else(|| "-".to_owned(), moment::stamp);
                let [id, kind, queue] = ["id", "kind", "queue"].map(|field| text(job, field));
                [id, kind, queue, moment::ago(at, now), not_before]
            });
            return screen::say_table(["id", "kind", "queue", "published", "not before"], rows);
        }
        let rows = self.heaps.iter().map(|((namespace, kind, queue), heap)| {
            [
                namespace.clone(),
                kind.clone(),
                queue.clone(),
                screen::thousands(heap.jobs),
                screen::thousands(heap.bytes),
                moment::ago(heap.oldest_ms, now),
            ]
        });
        screen::say_table(["namespace", "kind", "queue", "jobs", "bytes", "oldest"], rows)
    }

    fn json(&self, folder: &Folder, each: bool) -> Value {
        let kinds = self.heaps.iter().map(|((namespace, kind, queue), heap)| {
            json!({
                "namespace": namespace,
                "kind": kind,
                "queue": queue,
                "jobs": heap.jobs,
                "bytes": heap.bytes,
                "oldest_ms": heap.oldest_ms,
            })
        });
        let mut all = json!({
            "spool": folder.path().display().to_string(),
            "jobs": self.jobs,
            "bytes": self.bytes,
            "oldest_ms": self.heaps.values().map(|heap| heap.oldest_ms).min(),
            "kinds": kinds.collect::<Value>(),
            "damaged_bytes": self.damaged,
            "set_aside_bytes": folder.set_aside().map_or(0, |(_, bytes)| bytes),
        });
        if each {
            all["each"] = Value::Array(self.each.clone());
        }
        all
    }
}

fn sum(jobs: u64, bytes: u64) -> String {
    let (jobs, bytes) = (screen::count(jobs, "job", "jobs"), screen::count(bytes, "byte", "bytes"));
    format!("{jobs}, {bytes}")
}
