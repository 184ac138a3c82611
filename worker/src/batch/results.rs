//! What a batch handler says about its jobs.
//! In: results of single jobs, by item or in their order. Out: one result for each.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::anyhow;

use super::context::Item;
use crate::error::{JobError, JobResult};
use crate::handler::Output;

/// What a batch handler returns: `Ok` with a result for each of its jobs; an error fails them all,
/// each by its own attempts.
pub type BatchResult<T = ()> = JobResult<Results<T>>;

/// What became of each job of a batch. Each is settled on its own.
///
/// Where only failures are worth a word, begin with [`Results::done`]:
///
/// ```
/// use forebay_worker::{BatchContext, BatchResult, Item, JobError, Results};
///
/// async fn add_up(items: Vec<Item<Vec<u64>>>, _cx: BatchContext<()>) -> BatchResult {
///     let mut results = Results::done();
///     for item in &items {
///         if item.job.is_empty() {
///             results.fail(item, JobError::reject(anyhow::anyhow!("no numbers")));
///         }
///     }
///     Ok(results)
/// }
/// ```
///
/// Where each job has an answer, collect one for each item, in their order:
///
/// ```
/// # use forebay_worker::{BatchContext, BatchResult, Item};
/// async fn add_up(items: Vec<Item<Vec<u64>>>, _cx: BatchContext<()>) -> BatchResult<u64> {
///     Ok(items.iter().map(|item| Ok(item.job.iter().sum())).collect())
/// }
/// ```
#[must_use]
pub struct Results<T = ()> {
    said: BTreeMap<usize, JobResult<T>>,
    /// For items of which nothing was said; without it that is a failure.
    rest: Option<fn() -> T>,
    /// How many were collected: then they must be as many as there are items.
    collected: Option<usize>,
}

impl Results<()> {
    /// Every job is done, but those of which something else is said.
    pub fn done() -> Self {
        Self { rest: Some(|| ()), ..Self::new() }
    }
}

impl<T> Results<T> {
    /// Nothing is said yet. A job of which nothing is said in the end has failed, and is tried
    /// again by its policy.
    pub fn new() -> Self {
        Self { said: BTreeMap::new(), rest: None, collected: None }
    }

    /// Says what became of one job. The last word counts.
    pub fn set<J>(&mut self, item: &Item<J>, result: JobResult<T>) {
        self.said.insert(item.place(), result);
    }

    /// One job is done, with this answer for a caller that waits.
    pub fn answer<J>(&mut self, item: &Item<J>, answer: T) {
        self.set(item, Ok(answer));
    }

    /// One job has failed: what a single handler's error would do to it, this does.
    pub fn fail<J>(&mut self, item: &Item<J>, error: impl Into<JobError>) {
        self.set(item, Err(error.into()));
    }

    /// One result for each of so many items.
    ///
    /// # Errors
    /// When as many results were not collected: nobody knows which is whose.
    pub(super) fn of_each(
        mut self,
        items: usize,
        output: fn(T) -> JobResult<Output>,
    ) -> JobResult<Vec<JobResult<Output>>> {
        if let Some(collected) = self.collected.filter(|collected| *collected != items) {
            return Err(JobError::retry(anyhow!(
                "the batch handler returned {collected} results for {items} jobs"
            )));
        }
        let result = |place| match (self.said.remove(&place), self.rest) {
            (Some(result), _) => result.and_then(output),
            (None, Some(rest)) => output(rest()),
            (None, None) => {
                Err(JobError::retry(anyhow!("the batch handler said nothing about this job")))
            }
        };
        Ok((0..items).map(result).collect())
    }
}

impl<T> Default for Results<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> FromIterator<JobResult<T>> for Results<T> {
    /// One result for each item, in the order of the items. If they are not as many, every job of
    /// the batch has failed.
    fn from_iter<I: IntoIterator<Item = JobResult<T>>>(results: I) -> Self {
        let said: BTreeMap<_, _> = results.into_iter().enumerate().collect();
        Self { collected: Some(said.len()), said, rest: None }
    }
}

impl<T> fmt::Debug for Results<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.said.values().filter(|result| result.is_err()).count();
        f.debug_struct("Results").field("said", &self.said.len()).field("failed", &failed).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(n: u32) -> JobResult<Output> {
        Ok(Output::from_json(n.to_string()))
    }

    fn shown(results: JobResult<Vec<JobResult<Output>>>) -> Vec<String> {
        let shown = |result: JobResult<Output>| match result {
            Ok(output) => String::from_utf8(output.json().unwrap().to_vec()).unwrap(),
            Err(error) => error.message(),
        };
        match results {
            Ok(results) => results.into_iter().map(shown).collect(),
            Err(error) => vec![format!("all: {}", error.message())],
        }
    }

    #[test]
    fn results_that_were_collected_belong_to_the_items_in_their_order() {
        let results = || [Ok(1), Err(JobError::retry(anyhow!("no"))), Ok(3)].into_iter();
        let collected: Results<u32> = results().collect();
        assert_eq!(shown(collected.of_each(3, output)), ["1", "no", "3"]);
        let too_few: Results<u32> = results().take(2).collect();
        let expected = ["all: the batch handler returned 2 results for 3 jobs"];
        assert_eq!(shown(too_few.of_each(3, output)), expected);
    }

    #[test]
    fn an_item_of_which_nothing_is_said_is_done_only_where_that_was_said() {
        let silent = "the batch handler said nothing about this job";
        assert_eq!(shown(Results::new().of_each(2, output)), [silent; 2]);
        let done = Results::done().of_each(2, |()| output(0));
        assert_eq!(shown(done), ["0", "0"]);
    }
}
