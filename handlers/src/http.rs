//! An HTTP endpoint as a function.
//! In: a job, POSTed as JSON. Out: by the status of the answer, its result or what is to become
//! of the job.

use std::error::Error as _;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use bytes::Bytes;
use forebay_worker::{
    BatchContext, BatchResult, Context, Item, JobError, JobResult, Output, Results, TraceContext,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::batch;
use crate::capture::{Capture, RESULT};
use crate::signature::Secret;
use crate::word::{self, Entries, Hears};

/// How much of an answer goes into a failure.
const EXCERPT: usize = 2 * 1024;

/// The longest that `Retry-After` is believed.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Says that the body of an answer is more than a result. A body alone could not: it may be what
/// somebody sent, and is sent back.
const EMIT: &str = "forebay-emit";

/// Ours to set; configuration may not.
const RESERVED: [&str; 6] = [
    "content-length",
    "content-type",
    "idempotency-key",
    "traceparent",
    "tracestate",
    "transfer-encoding",
];

/// An HTTP endpoint that gets every job by POST.
///
/// # The contract
///
/// The body is the job's JSON, byte for byte. Headers: `content-type: application/json`,
/// `idempotency-key` (the sender's, else the job id), `forebay-job-id`, `forebay-job-kind`,
/// `forebay-job-attempt` (from 1), `traceparent` and `tracestate` if the job belongs to a trace, and
/// those configured. With a secret, `webhook-id` (the job id), `webhook-timestamp` and
/// `webhook-signature` by the [Standard Webhooks](https://www.standardwebhooks.com) scheme.
///
/// | answer | |
/// |---|---|
/// | 2xx | done; a JSON body is the result, of other text the last 4 kB as a JSON string |
/// | 408, 425, 429, 5xx | failed: again by the retry policy, or after `Retry-After` (at most a day) |
/// | any other 4xx, and 3xx | the job can never succeed: dead letter. Redirects are not followed |
/// | none: refused, cut, too late | failed: again by the retry policy |
///
/// An answer with a header `forebay-emit` has the body `{"result": …, "emit": [{"channel": …,
/// "event": …, "data": …}]}`, and tells those channels.
///
/// An answer of more than 16 MiB is not kept, and tells nothing. Where requests go is fixed here
/// and never by the payload. `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` are honoured except for
/// this very machine.
///
/// ```
/// use forebay_handlers::{Http, Secret};
/// use forebay_worker::{HandlerOptions, QueueOptions, Worker};
///
/// let push = Http::new("https://example.com/invoices")?
///     .header("x-team", "billing")?
///     .sign(Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?);
/// let worker = Worker::builder(())
///     .queue("default", QueueOptions::new())
///     .handle_raw("invoice.push", HandlerOptions::new(), push.handler())
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Http {
    client: Client,
    url: Url,
    headers: HeaderMap,
    secret: Option<Secret>,
}

/// A destination or header that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// No URL, or not of HTTP.
    #[error("is no http:// or https:// URL: {0}")]
    Url(String),
    /// Not a header.
    #[error("has a header `{0}` that cannot be sent")]
    Header(String),
    /// A header that tells the receiver about the job.
    #[error("sets the header `{0}`, which is ours to set")]
    Reserved(String),
    /// The client cannot be set up on this machine.
    #[error("cannot be called from this machine: {0}")]
    Client(String),
}

/// A job as the receiver is told about it.
#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    id: &'a str,
    kind: &'a str,
    attempt: u32,
    key: &'a str,
    trace: [Option<&'a str>; 2],
    timeout: Duration,
}

impl Http {
    /// Where to POST. User and password may stand in the URL; messages do not show them.
    ///
    /// # Errors
    /// [`HttpError`] unless it is a complete `http` or `https` URL.
    pub fn new(url: &str) -> Result<Self, HttpError> {
        let url = check_url(url)?;
        let client = client(&url).map_err(|error| HttpError::Client(causes(&error)))?;
        Ok(Self { client, url, headers: HeaderMap::new(), secret: None })
    }

    /// Adds a header to every request.
    ///
    /// # Errors
    /// [`HttpError`] if it cannot be sent, or is one that Forebay sets.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, HttpError> {
        let (name, value) = check_header(name, value)?;
        self.headers.insert(name, value);
        Ok(self)
    }

    /// Signs every request.
    pub fn sign(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// The function, for [`WorkerBuilder::handle_raw`](forebay_worker::WorkerBuilder::handle_raw).
    pub fn handler<S: Send + Sync + 'static>(
        self,
    ) -> impl Fn(Bytes, Context<S>) -> BoxFuture<'static, JobResult<Output>> + Send + Sync + 'static
    {
        let http = Arc::new(self);
        move |payload, cx| {
            let http = Arc::clone(&http);
            async move {
                let trace = cx.trace();
                let call = Call {
                    id: cx.id(),
                    kind: cx.kind(),
                    attempt: cx.attempt(),
                    key: cx.idempotency_key().unwrap_or_else(|| cx.id()),
                    trace: [
                        trace.as_ref().map(TraceContext::traceparent),
                        trace.as_ref().and_then(TraceContext::tracestate),
                    ],
                    timeout: before(cx.remaining()),
                };
                let answer = http.run(call, payload).await?;
                word::heard(&cx, |_| {}, |hears| answer.told(hears)).await
            }
            .boxed()
        }
    }

    /// The function for batches, for
    /// [`WorkerBuilder::handle_raw_batch`](forebay_worker::WorkerBuilder::handle_raw_batch).
    ///
    /// The body is one JSON array of all jobs, each with `id`, `attempt` and `payload`;
    /// `forebay-job-kind` and `forebay-batch-size` are the headers that tell of them. An answer of
    /// 2xx has no body, or `{"batchItemFailures": [{"itemIdentifier": ID}]}`; any other answer is
    /// about all of them. `docs/manifest.md` has the rest.
    pub fn batch_handler<S: Send + Sync + 'static>(
        self,
    ) -> impl Fn(Vec<Item<Bytes>>, BatchContext<S>) -> BoxFuture<'static, BatchResult<Output>>
    + Send
    + Sync
    + 'static {
        let http = Arc::new(self);
        move |items, cx| {
            let http = Arc::clone(&http);
            async move { http.run_batch(&items, &cx).await }.boxed()
        }
    }

    async fn run_batch<S: Send + Sync + 'static>(
        &self,
        items: &[Item<Bytes>],
        cx: &BatchContext<S>,
    ) -> BatchResult<Output> {
        let mut results = Results::new();
        let body = Bytes::from(batch::jobs(items, &mut results, batch::as_it_stands));
        let headers = self.headers_of_batch(cx.kind(), items, &body).map_err(JobError::reject)?;
        let answer = self.send(headers, before(cx.remaining()), body).await?;
        let answer = word::heard(cx, |_| {}, |hears| answer.told(hears)).await?;
        batch::read(&answer, items, results)
    }

    async fn run(&self, call: Call<'_>, payload: Bytes) -> JobResult<Answer> {
        let headers = self.headers_of(call, &payload).map_err(JobError::reject)?;
        self.send(headers, call.timeout, payload).await
    }

    async fn send(
        &self,
        headers: HeaderMap,
        timeout: Duration,
        payload: Bytes,
    ) -> JobResult<Answer> {
        let request = self.client.post(self.url.clone()).headers(headers).timeout(timeout);
        match request.body(payload).send().await {
            Ok(answer) => self.judge(answer).await,
            Err(error) => Err(self.unanswered("no answer from", &error)),
        }
    }

    /// A batch has no id that outlasts it. Each of its jobs has, in the body.
    fn headers_of_batch(
        &self,
        kind: &str,
        items: &[Item<Bytes>],
        body: &[u8],
    ) -> Result<HeaderMap, HttpError> {
        let mut headers = self.headers.clone();
        set(&mut headers, "content-type", "application/json")?;
        set(&mut headers, "forebay-job-kind", kind)?;
        set(&mut headers, "forebay-batch-size", &items.len().to_string())?;
        let digest = hex::encode(Sha256::digest(body));
        self.sign_as(&mut headers, &format!("batch-{}", &digest[..32]), body)?;
        Ok(headers)
    }

    fn sign_as(&self, headers: &mut HeaderMap, id: &str, body: &[u8]) -> Result<(), HttpError> {
        let Some(secret) = &self.secret else { return Ok(()) };
        let seconds = now().as_secs();
        set(headers, "webhook-id", id)?;
        set(headers, "webhook-timestamp", &seconds.to_string())?;
        set(headers, "webhook-signature", &secret.sign(id, seconds, body))
    }

    fn headers_of(&self, call: Call<'_>, payload: &[u8]) -> Result<HeaderMap, HttpError> {
        let attempt = call.attempt.to_string();
        let mut headers = self.headers.clone();
        let mut set = |name: &'static str, value: &str| set(&mut headers, name, value);
        set("content-type", "application/json")?;
        set("idempotency-key", call.key)?;
        set("forebay-job-id", call.id)?;
        set("forebay-job-kind", call.kind)?;
        set("forebay-job-attempt", &attempt)?;
        for (name, value) in ["traceparent", "tracestate"].into_iter().zip(call.trace) {
            if let Some(value) = value {
                // Not worth a job: a receiver works without it.
                set(name, value).ok();
            }
        }
        self.sign_as(&mut headers, call.id, payload)?;
        Ok(headers)
    }

    /// What the status says.
    async fn judge(&self, answer: Response) -> JobResult<Answer> {
        let status = answer.status();
        if status.is_success() {
            return self.result(answer).await;
        }
        let after = retry_after(answer.headers(), SystemTime::now());
        let place = answer.headers().get("location").cloned();
        let excerpt = excerpt(answer).await;
        let colon = if excerpt.is_empty() { "" } else { ": " };
        let cause = anyhow!("{} answered {status}{colon}{excerpt}", address(&self.url));
        Err(match (is_temporary(status), after) {
            (true, Some(wait)) => JobError::retry_after(wait).because(cause),
            (true, None) => JobError::retry(cause),
            (false, _) if status.is_redirection() => JobError::reject(cause.context(format!(
                "redirects are not followed; configure the final URL (location: {})",
                place.as_ref().and_then(|place| place.to_str().ok()).unwrap_or("not given")
            ))),
            (false, _) => JobError::reject(cause),
        })
    }

    async fn result(&self, mut answer: Response) -> JobResult<Answer> {
        let tells = answer.headers().contains_key(EMIT);
        let declared = answer.content_length();
        let mut body = Capture::new(RESULT);
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => body.push(&chunk),
                Ok(None) => return Ok(Answer { output: body.into_output(), tells, cut: false }),
                Err(error) => return Err(self.unanswered("an unfinished answer from", &error)),
            }
            if body.is_cut() {
                let omitted = format!("the answer has more than {RESULT} bytes");
                let note = json!({ "omitted": omitted, "bytes": declared });
                let output = Output::from_json(note.to_string().into_bytes());
                return Ok(Answer { output, tells, cut: true });
            }
        }
    }

    fn unanswered(&self, what: &str, error: &reqwest::Error) -> JobError {
        JobError::retry(anyhow!("{what} {}: {}", address(&self.url), causes(error)))
    }
}

/// A good answer.
#[derive(Debug)]
struct Answer {
    output: Output,
    /// Its header says that its body is a result and what channels are to be told.
    tells: bool,
    /// Its body was too large; the result is a note of that.
    cut: bool,
}

#[derive(Deserialize)]
struct Telling<'a> {
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    emit: Entries<'a>,
}

impl Answer {
    /// The result, without what channels are to be told, which is.
    async fn told(self, hears: Hears) -> JobResult<Output> {
        if self.tells && self.cut {
            warn!(limit = RESULT, "an answer is too large: the channels in it are not told");
        }
        if self.cut || !self.tells {
            return Ok(self.output);
        }
        let body = self.output.json().map_or(&b"null"[..], AsRef::as_ref);
        let telling: Telling<'_> = serde_json::from_slice(body).map_err(|error| {
            JobError::reject(anyhow!(
                "the answer has a header {EMIT}, and its body is not {{\"result\": …, \"emit\": \
                 [{{\"channel\": …, \"event\": …, \"data\": …}}]}}: {error}"
            ))
        })?;
        telling.emit.words().for_each(|word| hears(word));
        let result = telling.result.map(|result| result.get().to_owned());
        Ok(result.map_or_else(Output::none, Output::from_json))
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("url", &address(&self.url))
            .field("headers", &self.headers)
            .field("signed", &self.secret.is_some())
            .finish_non_exhaustive()
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), HttpError> {
    let value = value.parse().map_err(|_| HttpError::Header(name.to_owned()))?;
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

/// A URL as configuration may name it.
pub(crate) fn check_url(url: &str) -> Result<Url, HttpError> {
    let url = Url::parse(url).map_err(|error| HttpError::Url(error.to_string()))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        scheme => Err(HttpError::Url(format!("it begins with `{scheme}:`"))),
    }
}

/// Scheme, host and path, as messages may show them.
pub(crate) fn address(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // These fail only for URLs without a host, which HTTP has none of.
    url.set_username("").ok();
    url.set_password(None).ok();
    url.to_string()
}

/// A header as configuration may set it.
pub(crate) fn check_header(
    name: &str,
    value: &str,
) -> Result<(HeaderName, HeaderValue), HttpError> {
    let bad = || HttpError::Header(name.to_owned());
    let parsed: HeaderName = name.parse().map_err(|_| bad())?;
    let taken = RESERVED.contains(&parsed.as_str())
        || ["forebay-", "webhook-"].iter().any(|ours| parsed.as_str().starts_with(ours));
    if taken {
        return Err(HttpError::Reserved(name.to_owned()));
    }
    let mut value: HeaderValue = value.parse().map_err(|_| bad())?;
    // It may be a token: kept out of every `Debug`.
    value.set_sensitive(true);
    Ok((parsed, value))
}

fn client(url: &Url) -> reqwest::Result<Client> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Refused if the application has chosen one already, which is as well.
        rustls::crypto::ring::default_provider().install_default().ok();
    });
    let mut builder = Client::builder()
        .redirect(Policy::none())
        .connect_timeout(Duration::from_secs(10))
        .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")));
    if is_this_machine(url) {
        builder = builder.no_proxy();
    }
    builder.build()
}

fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The worker drops us at the deadline: a little earlier we can still say who was slow.
pub(crate) fn before(remaining: Duration) -> Duration {
    remaining - (remaining / 20).min(Duration::from_millis(250))
}

fn is_temporary(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
}

/// Seconds or a date. Zero and the past say nothing: then the policy decides.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).ok()?,
    };
    (!wait.is_zero()).then(|| wait.min(LONGEST_WAIT))
}

/// The first 2 kB of the body, as far as it comes.
async fn excerpt(mut answer: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk[..chunk.len().min(EXCERPT - body.len())]);
        if body.len() == EXCERPT {
            break;
        }
    }
    String::from_utf8_lossy(&body).trim().to_owned()
}

/// The causes of an error from the second on: the first repeats the URL, query and all.
fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let mut words = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        words.push(cause.to_string());
        next = cause.source();
    }
    if words.is_empty() { "the request failed".to_owned() } else { words.join(": ") }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_worker::testing::{self, Fate};
    use forebay_worker::{Envelope, HandlerOptions, QueueOptions, Worker};
    use serde_json::Value;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    /// Answers one request with `answer` as it stands; gives back what it was sent.
    async fn receiver(answer: impl Into<Vec<u8>>) -> (String, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jobs", listener.local_addr().unwrap());
        let answer = answer.into();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = request(&mut stream).await;
            // A client that has seen enough may hang up.
            stream.write_all(&answer).await.ok();
            request
        });
        (url, served)
    }

    async fn request(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        loop {
            let mut chunk = [0; 4096];
            let length = stream.read(&mut chunk).await.unwrap();
            text.extend_from_slice(&chunk[..length]);
            let so_far = String::from_utf8_lossy(&text);
            if let Some((head, body)) = so_far.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                    return so_far.into_owned();
                }
            }
            assert!(length > 0, "cut short: {so_far}");
        }
    }

    fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n");
        format!("{head}{headers}\r\n{body}").into_bytes()
    }

    async fn fate_within(http: Http, timeout: Duration) -> Fate {
        let worker = Worker::builder(())
            .queue("default", QueueOptions::new())
            .handle_raw("invoice.push", HandlerOptions::new().timeout(timeout), http.handler())
            .build()
            .unwrap();
        let mut job = Envelope::new("invoice.push", "default", r#"{"no": 7}"#);
        job.id = "job-1".to_owned();
        testing::run_envelope(&worker, job).await
    }

    async fn fate(http: Http) -> Fate {
        fate_within(http, Duration::from_secs(30)).await
    }

    /// What becomes of a job that is answered so.
    async fn fate_after(status: &str, headers: &str, body: &str) -> Fate {
        let (url, _served) = receiver(answer(status, headers, body)).await;
        fate(Http::new(&url).unwrap()).await
    }

    fn message(fate: &Fate) -> &str {
        match fate {
            Fate::Again { message, .. } | Fate::Dead { message, .. } => message,
            other => panic!("{other:?} has no message"),
        }
    }

    #[tokio::test]
    async fn only_a_header_makes_more_of_an_answer_than_a_result() {
        let body = r#"{"result": {"pages": 3}, "emit": []}"#;
        let whole = serde_json::from_str(body).unwrap();
        assert_eq!(fate_after("200 OK", "", body).await, Fate::Done(whole));
        let said = fate_after("200 OK", "forebay-emit: 1\r\n", body).await;
        assert_eq!(said, Fate::Done(json!({ "pages": 3 })));
        let none = fate_after("200 OK", "forebay-emit: 1\r\n", "").await;
        assert!(message(&none).contains("forebay-emit"), "{none:?}");
        let text = fate_after("200 OK", "forebay-emit: 1\r\n", "thank you").await;
        assert!(message(&text).contains("forebay-emit"), "{text:?}");
    }

    /// The result, and what the channels named in `answer` are told.
    async fn told(answer: Answer) -> (JobResult<Output>, Vec<String>) {
        let words = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&words);
        let hears: Hears = Arc::new(move |word| kept.lock().unwrap().push(format!("{word:?}")));
        let result = answer.told(hears).await;
        let words = words.lock().unwrap().clone();
        (result, words)
    }

    fn answered(body: String) -> Answer {
        Answer { output: Output::from_json(body), tells: true, cut: false }
    }

    #[tokio::test]
    async fn entries_that_cannot_be_read_are_handed_on_and_others_told() {
        let good = r#"{"channel": "orders", "event": "paid", "data": 1.0}"#;
        let body = format!("{{\"emit\": [7, {good}, {{}}], \"result\": 3.10}}");
        let (result, words) = told(answered(body)).await;
        assert_eq!(result.unwrap().json().unwrap(), "3.10");
        let [seven, paid, empty] = &words[..] else { panic!("{words:?}") };
        assert!(seven.starts_with("Garbled(") && empty.starts_with("Garbled("), "{words:?}");
        assert!(paid.starts_with("Emit(") && paid.contains("orders"), "{paid}");
    }

    #[tokio::test]
    async fn of_a_flood_of_entries_a_bounded_part_is_read() {
        let (result, words) =
            told(answered(format!("{{\"emit\": [{}0]}}", "0,".repeat(99_999)))).await;
        assert_eq!(result.unwrap().json(), None);
        assert_eq!(words.len(), 1_001);
        assert_eq!(words[1_000], "Beyond(99000)");
        let (result, words) = told(answered(r#"{"emit": {}}"#.to_owned())).await;
        assert!(result.is_err() && words.is_empty());
    }

    #[tokio::test]
    async fn the_receiver_gets_the_payload_and_is_told_about_the_job() {
        let (url, served) = receiver(answer("200 OK", "", "")).await;
        let http = Http::new(&url).unwrap().header("X-Team", "billing").unwrap();
        assert_eq!(fate(http).await, Fate::Done(Value::Null));
        let request = served.await.unwrap();
        assert!(request.starts_with("POST /jobs HTTP/1.1\r\n"), "{request}");
        for line in [
            "content-type: application/json",
            "idempotency-key: job-1",
            "forebay-job-id: job-1",
            "forebay-job-kind: invoice.push",
            "forebay-job-attempt: 1",
            "x-team: billing",
        ] {
            assert!(request.contains(&format!("\r\n{line}\r\n")), "{line} is not in {request}");
        }
        assert!(!request.contains("webhook-"), "{request}");
        assert!(request.ends_with("\r\n\r\n{\"no\": 7}"), "{request}");
    }

    #[tokio::test]
    async fn a_signed_request_can_be_verified_by_the_receiver() {
        let (url, served) = receiver(answer("200 OK", "", "")).await;
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        fate(Http::new(&url).unwrap().sign(secret.clone())).await;
        let request = served.await.unwrap();
        let header = |name: &str| {
            let line = request.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
            line.unwrap_or_else(|| panic!("no {name} in {request}")).to_owned()
        };
        let seconds: u64 = header("webhook-timestamp").parse().unwrap();
        assert!(now().as_secs().abs_diff(seconds) < 60);
        let expected = secret.sign(&header("webhook-id"), seconds, br#"{"no": 7}"#);
        assert_eq!(
            (header("webhook-id").as_str(), header("webhook-signature")),
            ("job-1", expected)
        );
    }

    #[test]
    fn the_trace_goes_along_and_a_broken_one_is_left_out() {
        let http = Http::new("http://localhost").unwrap();
        let call = Call {
            id: "1",
            kind: "a.b",
            attempt: 3,
            key: "order-7",
            trace: [Some("00-aa-bb-01"), Some("broken\n")],
            timeout: Duration::from_secs(1),
        };
        let headers = http.headers_of(call, b"{}").unwrap();
        assert_eq!(headers["traceparent"], "00-aa-bb-01");
        assert_eq!(headers["idempotency-key"], "order-7");
        assert_eq!(headers["forebay-job-attempt"], "3");
        assert!(!headers.contains_key("tracestate"));
    }

    #[tokio::test]
    async fn any_2xx_is_done_and_its_body_the_result() {
        let done = |json| Fate::Done(json);
        assert_eq!(fate_after("200 OK", "", r#"{"ok": 1}"#).await, done(json!({ "ok": 1 })));
        assert_eq!(fate_after("202 Accepted", "", "queued\n").await, done(json!("queued")));
        assert_eq!(fate_after("204 No Content", "", "").await, done(Value::Null));
    }

    #[tokio::test]
    async fn temporary_answers_are_retried_by_policy() {
        for status in ["408 X", "425 X", "429 X", "500 X", "502 X", "503 X", "504 X"] {
            let fate = fate_after(status, "", "busy").await;
            assert!(matches!(fate, Fate::Again { attempt: 2, .. }), "{status}: {fate:?}");
            assert!(message(&fate).ends_with(": busy"), "{fate:?}");
        }
    }

    #[tokio::test]
    async fn retry_after_sets_the_wait() {
        let fate = fate_after("429 Too Many Requests", "retry-after: 7\r\n", "").await;
        let Fate::Again { after, attempt, .. } = fate else { panic!("{fate:?}") };
        // As the delay ladder carries 7 s.
        assert_eq!((after, attempt), (Duration::from_millis(7_200), 2));
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let cases = [
            ("120", Some(120)),
            (" 120 ", Some(120)),
            ("0", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("99999999", Some(86_400)),
            ("99999999999999999999999", None),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", Some(30)),
            ("Sun Nov  6 08:50:07 1994", Some(30)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:00:00 GMT", None),
            ("Sat, 06 Nov 2094 08:00:00 GMT", Some(86_400)),
        ];
        for (value, seconds) in cases {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            let wait = retry_after(&headers, now).map(|wait| wait.as_secs());
            assert_eq!(wait, seconds, "{value:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[tokio::test]
    async fn a_refusal_is_a_dead_letter_with_status_and_the_beginning_of_the_body() {
        let body = format!("no such invoice{}", "x".repeat(5_000));
        let fate = fate_after("404 Not Found", "retry-after: 7\r\n", &body).await;
        assert!(matches!(&fate, Fate::Dead { reason, .. } if reason == "rejected"), "{fate:?}");
        assert!(
            message(&fate).contains("/jobs answered 404 Not Found: no such invoice"),
            "{fate:?}"
        );
        assert!(message(&fate).len() < EXCERPT + 100);
        for status in ["400 X", "401 X", "403 X", "409 X", "410 X", "422 X"] {
            assert!(matches!(fate_after(status, "", "").await, Fate::Dead { .. }), "{status}");
        }
    }

    #[tokio::test]
    async fn redirects_are_not_followed() {
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let location = format!("location: http://{}/x\r\n", target.local_addr().unwrap());
        for status in ["301 X", "302 X", "303 X", "307 X", "308 X"] {
            let fate = fate_after(status, &location, "").await;
            assert!(matches!(fate, Fate::Dead { .. }), "{status}: {fate:?}");
            assert!(message(&fate).contains("redirects are not followed"), "{fate:?}");
            assert!(message(&fate).contains(location.trim()), "{fate:?}");
        }
        let visited = tokio::time::timeout(Duration::from_millis(50), target.accept()).await;
        assert!(visited.is_err(), "somebody followed");
    }

    #[tokio::test]
    async fn nobody_there_is_retried_and_the_message_hides_credentials_and_query() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let url = format!("http://user:hush@{gone}/jobs?token=hush");
        let http = Http::new(&url).unwrap();
        assert!(!format!("{http:?}").contains("hush"));
        let fate = fate(http).await;
        assert!(matches!(fate, Fate::Again { attempt: 2, .. }), "{fate:?}");
        let message = message(&fate);
        assert!(message.starts_with(&format!("no answer from http://{gone}/jobs: ")), "{message}");
        assert!(message.contains("refused") && !message.contains("hush"), "{message}");
    }

    #[tokio::test]
    async fn a_slow_receiver_is_named_before_the_job_s_own_timeout() {
        let slow = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jobs?token=hush", slow.local_addr().unwrap());
        let fate = fate_within(Http::new(&url).unwrap(), Duration::from_secs(1)).await;
        assert!(matches!(fate, Fate::Again { attempt: 2, .. }), "{fate:?}");
        assert!(message(&fate).ends_with("/jobs: timed out"), "{fate:?}");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_retried() {
        let (url, _served) = receiver("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
        let fate = fate(Http::new(&url).unwrap()).await;
        assert!(matches!(fate, Fate::Again { attempt: 2, .. }), "{fate:?}");
        assert!(message(&fate).starts_with("an unfinished answer from"), "{fate:?}");
    }

    #[tokio::test]
    async fn of_a_huge_result_only_the_size_is_kept() {
        let body = "x".repeat(RESULT + 1);
        let emit = r#"{"channel": "orders", "event": "paid"}"#;
        let telling = format!("{{\"result\": \"{body}\", \"emit\": [{emit}]}}");
        for (headers, body) in [("", &body), ("forebay-emit: 1\r\n", &telling)] {
            let Fate::Done(result) = fate_after("200 OK", headers, body).await else { panic!() };
            assert_eq!(result["bytes"], json!(body.len()));
            assert_eq!(result["omitted"], "the answer has more than 16777216 bytes");
        }
    }

    #[test]
    fn only_http_urls_and_foreign_headers_are_taken() {
        for url in ["", "example.com", "ftp://example.com", "/jobs", "http://", "amqp://a"] {
            assert!(matches!(Http::new(url), Err(HttpError::Url(_))), "{url}");
        }
        let http = || Http::new("https://example.com").unwrap();
        for name in ["Content-Type", "Webhook-Id", "forebay-job-id", "traceparent"] {
            assert!(matches!(http().header(name, "x"), Err(HttpError::Reserved(_))), "{name}");
        }
        for (name, value) in [("a b", "x"), ("x-a", "line\nbreak"), ("", "x")] {
            assert!(matches!(http().header(name, value), Err(HttpError::Header(_))), "{name}");
        }
        assert!(!format!("{:?}", http().header("authorization", "hush").unwrap()).contains("hush"));
    }

    #[test]
    fn this_machine_is_called_without_a_proxy() {
        let of = |url| is_this_machine(&Url::parse(url).unwrap());
        assert!(of("http://localhost:1") && of("http://127.0.0.9") && of("http://[::1]:8"));
        assert!(!of("http://localhost.example.com") && !of("http://10.0.0.1"));
    }
}
