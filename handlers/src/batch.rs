//! What a program or an endpoint is told about a batch, and what it answers.
//! In: jobs, as one JSON array; an answer in the form of Lambda's `batchItemFailures`. Out: for
//! each job what is to become of it.

use std::collections::HashMap;

use anyhow::anyhow;
use bytes::Bytes;
use forebay_worker::{BatchResult, Item, JobError, Output, Results, TraceContext};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::wish::{Then, beginning};

/// A job as a program is told about it. What is `None` is left out.
#[derive(Debug, Serialize)]
struct Told<'a> {
    id: &'a str,
    attempt: u32,
    redelivered: bool,
    crashes: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claim_number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<String>,
}

/// The jobs as a JSON array; `push` adds a payload, which is known to be JSON. One that is no UTF-8
/// is left out, and fails alone: amid the others it would make all of them unreadable.
pub(crate) fn jobs(
    items: &[Item<Bytes>],
    results: &mut Results<Output>,
    push: impl Fn(&mut String, &str),
) -> String {
    let room: usize = items.iter().map(|item| item.job.len() + 160).sum();
    let mut text = String::with_capacity(room + 2);
    text.push('[');
    for item in items {
        let payload = match std::str::from_utf8(&item.job) {
            Ok(payload) => payload,
            Err(error) => {
                let why = anyhow!("the payload is not UTF-8: {error}");
                results.fail(item, JobError::reject(why));
                continue;
            }
        };
        if text.len() > 1 {
            text.push(',');
        }
        let told = serde_json::to_string(&told(item)).expect("texts and numbers are JSON");
        text.push_str(told.strip_suffix('}').expect("a struct ends so"));
        text.push_str(",\"payload\":");
        push(&mut text, payload);
        text.push('}');
    }
    text.push(']');
    text
}

/// Adds a payload as it stands.
pub(crate) fn as_it_stands(text: &mut String, payload: &str) {
    text.push_str(payload);
}

fn told(item: &Item<Bytes>) -> Told<'_> {
    let trace = item.trace();
    Told {
        id: item.id(),
        attempt: item.attempt(),
        redelivered: item.redelivered(),
        crashes: item.crashes(),
        idempotency_key: item.idempotency_key(),
        claim_number: item.claim_number(),
        traceparent: trace.as_ref().map(|trace| trace.traceparent().to_owned()),
        tracestate: trace.as_ref().and_then(TraceContext::tracestate).map(str::to_owned),
    }
}

/// An answer, in the form of Lambda's, and what we add to it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    #[serde(rename = "batchItemFailures")]
    failures: Option<Vec<Failed>>,
    results: Option<HashMap<String, Box<RawValue>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Failed {
    #[serde(rename = "itemIdentifier")]
    id: String,
    error: Option<String>,
    #[serde(default)]
    reject: bool,
    retry_after: Option<Value>,
    defer: Option<Value>,
}

/// What an answer says about each job of which `results` say nothing yet: nothing at all and an
/// empty list mean that all are done.
///
/// # Errors
/// When it cannot be read, or names a job that is not in the batch: nobody knows then what became
/// of which, and all of them are tried again.
pub(crate) fn read(
    answer: &Output,
    items: &[Item<Bytes>],
    results: Results<Output>,
) -> BatchResult<Output> {
    let Answer { failures, results: mut of_jobs } = match answer.json() {
        None => Answer::default(),
        Some(json) => parsed(json)?,
    };
    let mut said = results;
    let mut failed: HashMap<_, _> = HashMap::new();
    for failure in failures.into_iter().flatten() {
        failed.insert(failure.id.clone(), failure);
    }
    let named = failed.keys().chain(of_jobs.iter().flat_map(HashMap::keys));
    if let Some(stranger) = named.into_iter().find(|id| items.iter().all(|item| item.id() != **id))
    {
        return Err(JobError::retry(anyhow!(
            "the answer names job `{}`, which is not in the batch, so nothing of it is believed",
            beginning(stranger.as_bytes())
        )));
    }
    for item in items.iter().filter(|item| std::str::from_utf8(&item.job).is_ok()) {
        // The same job may be there twice: what is said of it holds for both.
        let result = match failed.get(item.id()) {
            Some(failure) => Err(failure.error()),
            None => Ok(of_jobs
                .as_mut()
                .and_then(|results| results.get(item.id()))
                .map_or_else(Output::none, |result| Output::from_json(result.get().to_owned()))),
        };
        said.set(item, result);
    }
    Ok(said)
}

fn parsed(json: &[u8]) -> Result<Answer, JobError> {
    let unreadable = |why: &dyn std::fmt::Display| {
        JobError::retry(anyhow!(
            "the answer is not {{\"batchItemFailures\": [{{\"itemIdentifier\": \"ID\"}}]}}, nothing \
             or null ({why}): {}",
            beginning(json)
        ))
    };
    // Beyond ASCII, serde_json looks at UTF-8 only where it makes a text of it.
    let text = std::str::from_utf8(json).map_err(|_| unreadable(&"it is not UTF-8"))?;
    let answer: Option<Answer> = serde_json::from_str(text).map_err(|error| unreadable(&error))?;
    Ok(answer.unwrap_or_default())
}

impl Failed {
    fn error(&self) -> JobError {
        let why = self.error.clone().unwrap_or_default();
        match Then::read(self.reject, self.retry_after.clone(), self.defer.clone()) {
            Ok(then) if why.is_empty() && then == Then::Retry => {
                JobError::retry(anyhow!("it is among the batchItemFailures"))
            }
            Ok(then) => then.because(why),
            Err(what) if why.is_empty() => {
                JobError::retry(anyhow!("the answer names this job with {what}"))
            }
            Err(what) => JobError::retry(anyhow!("the answer names this job with {what}: {why}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_worker::testing::{self, Fate};
    use forebay_worker::{BatchOptions, Envelope, HandlerOptions, QueueOptions, Worker};
    use serde_json::json;

    /// What becomes of jobs `a` and `b`, and of `c` that is no UTF-8, when this is answered.
    async fn fates(answer: &'static str) -> Vec<Fate> {
        let handler = move |items: Vec<Item<Bytes>>, _cx| async move {
            let mut results = Results::new();
            let text = jobs(&items, &mut results, as_it_stands);
            let told: Value = serde_json::from_str(&text).unwrap();
            let seen: Vec<_> = told.as_array().unwrap().iter().map(|job| &job["payload"]).collect();
            assert_eq!(seen, [&json!({ "n": 1 }), &json!(null)]);
            assert_eq!(told[0]["id"], "a");
            assert_eq!(told[1]["attempt"], 2);
            let output = if answer.is_empty() { Output::none() } else { Output::from_json(answer) };
            read(&output, &items, results)
        };
        let (options, batch) = (HandlerOptions::new(), BatchOptions::new());
        let worker = Worker::builder(())
            .queue("default", QueueOptions::new())
            .handle_raw_batch("a.b", options, batch, handler)
            .build()
            .unwrap();
        let job = |id: &str, payload: &'static [u8], attempt| {
            let mut job = Envelope::new("a.b", "default", payload);
            (job.id, job.attempt) = (id.to_owned(), attempt);
            job
        };
        testing::run_envelopes(
            &worker,
            vec![job("a", b"{\"n\": 1}", 1), job("b", b"null", 2), job("c", b"\"\xff\"", 1)],
        )
        .await
    }

    fn shown(fate: &Fate) -> String {
        match fate {
            Fate::Done(value) => format!("done {value}"),
            Fate::Again { after, attempt, message } => {
                format!("again {} {attempt} {message}", after.as_secs())
            }
            Fate::Dead { message, .. } => format!("dead {message}"),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_answer_means_what_is_documented() {
        let table = [
            ("", ["done null", "done null"]),
            ("null", ["done null", "done null"]),
            ("{}", ["done null", "done null"]),
            (r#"{"batchItemFailures": []}"#, ["done null", "done null"]),
            (r#"{"batchItemFailures": null}"#, ["done null", "done null"]),
            (r#"{"results": {"b": {"row": 7}}}"#, ["done null", r#"done {"row":7}"#]),
            (
                r#"{"batchItemFailures": [{"itemIdentifier": "a", "error": "no", "reject": true}], "results": {"b": 1.5}}"#,
                ["dead no", "done 1.5"],
            ),
            (
                r#"{"batchItemFailures": [{"itemIdentifier": "b", "retry_after": "16s"}]}"#,
                ["done null", "again 16 3 to be retried after 16s"],
            ),
            (
                r#"{"batchItemFailures": [{"itemIdentifier": "b", "defer": 16}]}"#,
                ["done null", "again 16 2 "],
            ),
        ];
        for (answer, expected) in table {
            let fates: Vec<_> = fates(answer).await.iter().map(shown).collect();
            assert_eq!(fates[..2], expected, "{answer}");
            assert!(fates[2].starts_with("dead the payload is not UTF-8"), "{fates:?}");
        }
        let failed = fates(r#"{"batchItemFailures": [{"itemIdentifier": "a"}]}"#).await;
        assert!(shown(&failed[0]).ends_with("2 it is among the batchItemFailures"), "{failed:?}");
        let unclear = fates(
            r#"{"batchItemFailures": [{"itemIdentifier": "a", "defer": "soon", "error": "x"}]}"#,
        )
        .await;
        let words = "names this job with a `defer` that is no duration: \\\"soon\\\": x";
        assert!(shown(&unclear[0]).ends_with(words), "{unclear:?}");
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_believed_fails_them_all() {
        let table = [
            (r#"{"batchItemFailures": [{"itemIdentifier": "x"}]}"#, "names job `x`, which is not"),
            (r#"{"batchItemFailures": [{"itemIdentifier": ""}]}"#, "names job ``, which is not"),
            (r#"{"results": {"y": 1}}"#, "names job `y`, which is not in the batch"),
            (r#"{"batchItemFailures": [{"itemIdentifier": null}]}"#, "expected a string"),
            (r#"{"batchItemFailures": ["a"]}"#, "invalid type: string"),
            (r#"{"batchItemFailures": [{"id": "a"}]}"#, "unknown field `id`"),
            (r#"{"batchitemfailures": []}"#, "unknown field `batchitemfailures`"),
            (r#""imported 2 rows""#, r#"): \"imported 2 rows\""#),
            ("[]", "the answer is not {\"batchItemFailures\""),
        ];
        for (answer, words) in table {
            for (fate, attempt) in fates(answer).await.iter().zip([2, 3]) {
                let Fate::Again { attempt: next, message, .. } = fate else { panic!("{fate:?}") };
                assert!(message.contains(words) && *next == attempt, "{answer}: {message}");
            }
        }
    }
}
