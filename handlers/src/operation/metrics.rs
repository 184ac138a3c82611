//! Keeps what the libraries count, for Prometheus.
//! In: the `metrics` facade. Out: a handle whose text is the page `/metrics`.

use forebay_worker::describe_metrics;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// The text format of Prometheus.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const BUILD_INFO: &str = "forebay_build_info";
/// For everything that takes time: from a millisecond to ten minutes.
const SECONDS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0, 600.0,
];

/// For how many jobs a batch has.
const JOBS: [f64; 12] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0];

/// Begins to keep; to be called before the worker starts.
///
/// # Errors
/// When something else keeps already.
pub(crate) fn install() -> Result<PrometheusHandle, BuildError> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let jobs = Matcher::Full("forebay_batch_jobs".to_owned());
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(seconds, &SECONDS)?
        .set_buckets_for_metric(jobs, &JOBS)?;
    let handle = builder.install_recorder()?;
    describe_metrics();
    forebay_handlers::describe_metrics();
    metrics::describe_gauge!(BUILD_INFO, "The version that runs; always 1.");
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}
