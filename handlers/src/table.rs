//! What `--check` prints.
//! In: a manifest without faults. Out: its queues and functions as two tables.

use std::time::Duration;

use comfy_table::{Table, presets};
use forebay_handlers::Manifest;
use forebay_worker::{Config, QueueType};

/// What would be consumed and what would run, as text.
pub(crate) fn summary(manifest: &Manifest, config: &Config) -> String {
    format!(
        "{} is fine: broker {}, namespace {}\n{}\n{}\n\n{}",
        manifest.file.display(),
        config.broker(),
        config.topology().namespace(),
        idempotency(manifest),
        queues(manifest),
        functions(manifest)
    )
}

fn idempotency(manifest: &Manifest) -> String {
    let Some(settings) = &manifest.idempotency else { return String::new() };
    let which = if settings.only_with_key { "each job with a key" } else { "each job" };
    format!("{which} once: claims are in {}\n", settings.store)
}

fn queues(manifest: &Manifest) -> Table {
    let mut table = table(["QUEUE", "TYPE", "CONCURRENCY", "PREFETCH", "RATE", "DEFAULT KIND"]);
    for (name, queue) in &manifest.queues {
        table.add_row([
            name.clone(),
            match queue.queue_type.unwrap_or_default() {
                QueueType::Classic => "classic".to_owned(),
                _ => "quorum".to_owned(),
            },
            or_default(queue.concurrency),
            or_default(queue.prefetch),
            queue.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate}/s")),
            queue.default_kind.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

fn functions(manifest: &Manifest) -> Table {
    let mut table = table(["FUNCTION", "QUEUE", "RUNS", "TIMEOUT", "ATTEMPTS", "CONCURRENCY"]);
    for (kind, function) in &manifest.functions {
        table.add_row([
            kind.clone(),
            function.queue.clone(),
            function.runs.to_string(),
            or_default(function.timeout.map(duration)),
            or_default(function.retry.map(|retry| retry.max_attempts)),
            or_default(function.concurrency),
        ]);
    }
    table
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn or_default(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "default".to_owned(), |value| value.to_string())
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
