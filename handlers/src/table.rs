//! What `--check` prints.
//! In: a manifest without faults and its worker. Out: its queues and functions as two tables, with
//! the defaults filled in.

use std::time::Duration;

use comfy_table::{Table, presets};
use forebay_handlers::Manifest;
use forebay_handlers::app::App;
use forebay_worker::{Config, HandlerOptions, QueueType};

/// What would be consumed and what would run, as text.
pub(crate) fn summary(app: &App, config: &Config) -> String {
    format!(
        "{} is fine: broker {}, namespace {}\n{}\n{}\n\n{}",
        app.manifest.file.display(),
        config.broker(),
        config.topology().namespace(),
        idempotency(&app.manifest),
        queues(app),
        functions(app)
    )
}

fn idempotency(manifest: &Manifest) -> String {
    let Some(settings) = &manifest.idempotency else { return String::new() };
    let which = if settings.only_with_key { "each job with a key" } else { "each job" };
    format!("{which} once: claims are in {}\n", settings.store)
}

fn queues(app: &App) -> Table {
    let mut table = table(["QUEUE", "TYPE", "CONCURRENCY", "PREFETCH", "RATE", "DEFAULT KIND"]);
    for (name, queue) in &app.manifest.queues {
        let limits = app.worker.limits(name);
        table.add_row([
            name.clone(),
            match queue.queue_type.unwrap_or_default() {
                QueueType::Classic => "classic".to_owned(),
                _ => "quorum".to_owned(),
            },
            or_dash(limits.map(|(concurrency, _)| concurrency)),
            or_dash(limits.map(|(_, prefetch)| prefetch)),
            or_dash(queue.rate.map(|rate| format!("{rate}/s"))),
            or_dash(queue.default_kind.clone()),
        ]);
    }
    table
}

fn functions(app: &App) -> Table {
    let mut table =
        table(["FUNCTION", "QUEUE", "RUNS", "TIMEOUT", "ATTEMPTS", "CONCURRENCY", "BATCH"]);
    for (kind, function) in &app.manifest.functions {
        table.add_row([
            kind.clone(),
            function.queue.clone(),
            function.runs.to_string(),
            duration(function.timeout.unwrap_or(HandlerOptions::TIMEOUT)),
            function.retry.unwrap_or_default().max_attempts.to_string(),
            or_dash(app.at_once(kind)),
            or_dash(
                function
                    .batch
                    .map(|batch| format!("{} within {}", batch.size, duration(batch.window))),
            ),
        ]);
    }
    table
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
