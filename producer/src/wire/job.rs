//! What sender and runner both know about a job: its kind and the queue it waits on.
//! In: a type of the user's. Out: nothing yet; the envelope carries it.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A piece of work that is published by one process and handled by another.
///
/// The type is the payload; it travels as JSON. The two constants are all that sender and runner
/// have to agree on. What only the runner decides (timeout, retries, concurrency) stands in its
/// `HandlerOptions`.
///
/// ```
/// use forebay_producer::Job;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct SendEmail {
///     to: String,
/// }
///
/// impl Job for SendEmail {
///     const KIND: &'static str = "email.send";
///     const QUEUE: &'static str = "mail";
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a job",
    label = "needs `impl Job for {Self} {{ const KIND: &'static str = \"noun.verb\"; }}`",
    note = "a job is any `Serialize + DeserializeOwned + Send + 'static` type with a kind"
)]
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// Names the function that handles the job: `noun.verb`, at most 200 bytes.
    const KIND: &'static str;

    /// The queue the job waits on unless the publish says otherwise. Default: `default`.
    const QUEUE: &'static str = "default";

    /// Whether what happens to such jobs is told as events, unless the publish says otherwise; see
    /// [`PublishOptions::track`](crate::PublishOptions::track). Default: `false`.
    const TRACK: bool = false;
}
