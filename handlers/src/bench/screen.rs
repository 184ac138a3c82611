//! What a person sees while it runs: on standard error, and only if that is a terminal.
//! In: steps, jobs, ratios. Out: a few lines that stay where they are.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Lines on a terminal; nothing elsewhere.
#[derive(Debug)]
pub(crate) struct Screen {
    all: MultiProgress,
    whole: ProgressBar,
    now: ProgressBar,
    /// What each case has come to so far.
    cases: Vec<ProgressBar>,
}

impl Screen {
    pub(crate) fn begin(runs: u64, cases: usize) -> Self {
        let all = MultiProgress::new();
        let style = |template| {
            let style = ProgressStyle::with_template(template).expect("the template is a constant");
            style.progress_chars("━╸ ")
        };
        let cases = (0..cases)
            .map(|_| all.add(ProgressBar::no_length().with_style(style("{msg}"))))
            .collect();
        let now = all.add(ProgressBar::new(1).with_style(style("{bar:30} {msg}")));
        let whole =
            ProgressBar::new(runs).with_style(style("{bar:30} run {pos} of {len}, {eta} left"));
        let whole = all.add(whole);
        whole.enable_steady_tick(Duration::from_secs(1));
        Self { all, whole, now, cases }
    }

    /// A run begins.
    pub(crate) fn run(&self, what: String) {
        self.now.set_length(1);
        self.now.set_position(0);
        self.now.set_message(what);
    }

    /// How far the run is.
    pub(crate) fn at(&self, jobs: u64, of: u64) {
        self.now.set_length(of.max(1));
        self.now.set_position(jobs);
    }

    /// A run is over.
    pub(crate) fn done(&self) {
        self.whole.inc(1);
    }

    /// A round is over; what its case comes to so far.
    pub(crate) fn so_far(&self, case: usize, line: String) {
        if let Some(bar) = self.cases.get(case) {
            bar.set_message(line);
        }
    }
}

/// Leaves the terminal as it was, however it ends.
impl Drop for Screen {
    fn drop(&mut self) {
        // Or its thread draws once more behind our back.
        self.whole.disable_steady_tick();
        for bar in self.cases.iter().chain([&self.now, &self.whole]) {
            bar.finish_and_clear();
        }
        _ = self.all.clear();
    }
}
