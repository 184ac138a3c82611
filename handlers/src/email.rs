//! `email.send`: a mail, handed to a mail server by SMTP.
//! In: `{"to": …, "subject": …, "text": …}`. Out: the server's answer and the Message-ID; from and to
//! addresses that are allowed only.

mod address;
mod body;
mod handover;
mod mail;
mod server;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_worker::{Context, JobResult, Output, Retry};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, TlsParameters, TlsParametersBuilder};
use lettre::transport::smtp::extension::ClientId;
use serde_json::json;
use tokio::time::Instant;

use crate::http::before;
use crate::roots::{Roots, RootsError};
use address::Allowed;
use mail::Rules;
pub use server::SmtpTls;
use server::{Place, Server};

/// Where and as whom [`Email`] sends, and to whom. `Debug` does not show the password.
///
/// ```
/// use forebay_handlers::EmailOptions;
///
/// let options = EmailOptions::new("smtp://mail.example.org")? // port 587, STARTTLS
///     .credentials("shop", "hush")
///     .from("Shop <shop@example.org>")?
///     .allow_to(["example.org", "partner@example.com"])?
///     .roots(["/tmp"]);
/// # let _ = options;
/// # Ok::<(), forebay_handlers::EmailError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
#[must_use]
pub struct EmailOptions {
    place: Place,
    credentials: Option<(String, String)>,
    ca: Option<PathBuf>,
    hello: Option<String>,
    from: Option<Mailbox>,
    allow_from: Allowed,
    allow_to: Allowed,
    max_size: usize,
    roots: Vec<PathBuf>,
}

/// A setting of `email.send` that cannot be used, here or at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmailError {
    /// No URL, or not of a mail server.
    #[error("is no smtp:// or smtps:// URL: {0}")]
    Url(String),
    /// No address, or no entry of a list of addresses.
    #[error("cannot be used: {0}")]
    Address(String),
    /// No name to greet a server with.
    #[error("is {0:?}, which is no host name")]
    Hello(String),
    /// Without TLS to another machine.
    #[error("does without TLS, and {0} is not this machine")]
    Open(String),
    /// Nobody may be written to.
    #[error("may write to nobody")]
    Nobody,
    /// A certificate that is not there, or is none.
    #[error("`{}` is no certificate that can be used: {why}", .file.display())]
    Certificate {
        /// Its file.
        file: PathBuf,
        /// Why not.
        why: String,
    },
    /// TLS cannot be set up on this machine.
    #[error("no TLS on this machine: {0}")]
    Tls(String),
    /// A folder of attachments.
    #[error(transparent)]
    Roots(#[from] RootsError),
}

/// Sends mails through one mail server.
///
/// # The contract
///
/// | of the payload | |
/// |---|---|
/// | `to`, `cc`, `bcc` | an address, as `ada@example.org` or `Ada <ada@example.org>`, or a list of them; together 1 to 100 |
/// | `subject` | one line |
/// | `text`, `html` | the body; one of them, or both as alternatives |
/// | `from` | instead of the default; only what is allowed |
/// | `reply_to` | an address or a list |
/// | `in_reply_to` | the Message-ID of the mail that this one answers |
/// | `headers` | a table of further headers: `X-…`, `List-…`, `Auto-Submitted` and a few more |
/// | `attachments` | a list of `{"path": …}` within the roots or `{"data": base64, "name": …}`, each with `name`, `type` and `inline`, the name under which `html` shows it as `cid:NAME` |
///
/// The result is `{"message_id", "server", "answer", "recipients", "bytes"}`; in the answer servers
/// name what they call the mail.
///
/// | what the server does | |
/// |---|---|
/// | takes the mail | done |
/// | answers 4xx | failed: again by the retry policy |
/// | answers 5xx to sender, a recipient, or the mail | the job can never succeed: dead letter |
/// | refuses the user or the password, asks for them (530, 534, 535, 538) | failed: again by the policy. It is not the mail's fault |
/// | cannot be reached, offers no TLS, has a certificate that is not trusted, is silent | failed: again by the policy |
/// | refuses some recipients only | nobody is sent the mail. A dead letter if one of them is refused for good, else again |
///
/// The Message-ID is made of the job id and is the same in every run. If the answer to a mail is
/// lost, the next try may deliver it a second time: the receiving side can tell by that id, and
/// many mailboxes then keep one of the two, but none has to.
///
/// ```
/// use forebay_handlers::{Email, EmailOptions};
/// use forebay_worker::{HandlerOptions, QueueOptions, Worker};
///
/// let options = EmailOptions::new("smtp://localhost:25")?.tls(forebay_handlers::SmtpTls::None)?;
/// let email = Email::new(&options.from("shop@example.org")?.allow_to(["*"])?)?;
/// let worker = Worker::builder(())
///     .queue("default", QueueOptions::new())
///     .handle_raw(Email::NAME, HandlerOptions::new().retry(Email::RETRY), email.handler())
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Email {
    rules: Arc<Rules>,
    server: Arc<Server>,
}

impl EmailOptions {
    /// Sends through this server: `smtp://host` with STARTTLS, port 587 unless another is named, or
    /// `smtps://host` with TLS from the start, port 465.
    ///
    /// # Errors
    /// [`EmailError::Url`]. User and password do not belong into the URL.
    pub fn new(smtp: &str) -> Result<Self, EmailError> {
        Ok(Self {
            place: Place::parse(smtp)?,
            credentials: None,
            ca: None,
            hello: None,
            from: None,
            allow_from: Allowed::default(),
            allow_to: Allowed::default(),
            max_size: 10_000_000,
            roots: Vec::new(),
        })
    }

    /// Sets how the connection is secured, other than the URL says.
    ///
    /// # Errors
    /// [`EmailError::Open`] for [`SmtpTls::None`] and a server that is not this machine.
    pub fn tls(mut self, tls: SmtpTls) -> Result<Self, EmailError> {
        if tls == SmtpTls::None && !self.place.is_this_machine() {
            return Err(EmailError::Open(self.place.to_string()));
        }
        self.place.tls = tls;
        Ok(self)
    }

    /// Logs in. Default: it does not.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some((user.into(), password.into()));
        self
    }

    /// Trusts the certificates in this PEM file too, besides those of the system.
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca = Some(file.into());
        self
    }

    /// Sets the name that the server is greeted with. Default: this machine's.
    ///
    /// # Errors
    /// [`EmailError::Hello`] if it is no host name.
    pub fn hello(mut self, name: &str) -> Result<Self, EmailError> {
        if !is_host_name(name) {
            return Err(EmailError::Hello(name.to_owned()));
        }
        self.hello = Some(name.to_owned());
        Ok(self)
    }

    /// Sets the sender of jobs that name none. Default: every job must.
    ///
    /// # Errors
    /// [`EmailError::Address`].
    pub fn from(mut self, sender: &str) -> Result<Self, EmailError> {
        self.from = Some(address::mailbox(sender).map_err(EmailError::Address)?);
        Ok(self)
    }

    /// Sets which senders jobs may name besides the default one: addresses, domains
    /// (`example.org`, `*.example.org`), `*` for any. Default: none.
    ///
    /// # Errors
    /// [`EmailError::Address`].
    pub fn allow_from<T: AsRef<str>>(
        mut self,
        senders: impl IntoIterator<Item = T>,
    ) -> Result<Self, EmailError> {
        self.allow_from = Allowed::new(senders).map_err(EmailError::Address)?;
        Ok(self)
    }

    /// Sets to whom jobs may write, in the same form. Default: nobody, which [`Email::new`] refuses.
    ///
    /// # Errors
    /// [`EmailError::Address`].
    pub fn allow_to<T: AsRef<str>>(
        mut self,
        recipients: impl IntoIterator<Item = T>,
    ) -> Result<Self, EmailError> {
        self.allow_to = Allowed::new(recipients).map_err(EmailError::Address)?;
        Ok(self)
    }

    /// Sets how many bytes a mail may have, attachments included, as it goes over the line. Base64
    /// makes attachments a third larger. Default: 10 MB.
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.max_size = bytes;
        self
    }

    /// Sets the folders whose files jobs may attach. Default: none.
    pub fn roots(mut self, roots: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        self.roots = roots.into_iter().map(Into::into).collect();
        self
    }

    /// The server, as messages name it.
    pub(crate) fn server(&self) -> String {
        self.place.to_string()
    }

    fn tls_parameters(&self) -> Result<Option<TlsParameters>, EmailError> {
        if matches!(self.place.tls, SmtpTls::None | SmtpTls::Insecure) {
            return Ok(None);
        }
        let mut builder = TlsParametersBuilder::new(self.place.host.clone());
        if let Some(file) = &self.ca {
            let wrong = |why: String| EmailError::Certificate { file: file.clone(), why };
            let pem = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
            if !pem.windows(17).any(|part| part == b"BEGIN CERTIFICATE") {
                return Err(wrong("it holds no PEM certificate".to_owned()));
            }
            let certificate =
                Certificate::from_pem(&pem).map_err(|error| wrong(server::words(&error)))?;
            builder = builder.add_root_certificate(certificate);
        }
        builder.build().map(Some).map_err(|error| EmailError::Tls(server::words(&error)))
    }

    fn client_id(&self) -> ClientId {
        let of_machine =
            || hostname::get().ok()?.into_string().ok().filter(|name| is_host_name(name));
        match self.hello.clone().or_else(of_machine) {
            Some(name) => ClientId::Domain(name),
            None => ClientId::Ipv4(std::net::Ipv4Addr::LOCALHOST),
        }
    }
}

fn is_host_name(name: &str) -> bool {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty() && name.len() <= 255 && name.chars().all(fit)
}

impl fmt::Debug for EmailOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmailOptions")
            .field("place", &self.place)
            .field("user", &self.credentials.as_ref().map(|(user, _)| user))
            .field("from", &self.from)
            .field("allow_from", &self.allow_from)
            .field("allow_to", &self.allow_to)
            .finish_non_exhaustive()
    }
}

impl Email {
    /// What `use = "…"` names in a manifest, and the kind that suggests itself.
    pub const NAME: &'static str = "email.send";

    /// A retry policy for mails: 15 attempts, 30 s doubling up to 1 h, a random part of it. Servers
    /// that put off what they do not know yet want minutes, and a server that is down wants hours.
    pub const RETRY: Retry = Retry {
        max_attempts: 15,
        base: Duration::from_secs(30),
        factor: 2.0,
        cap: Duration::from_secs(3600),
        jitter: true,
    };

    /// Looks for folders and certificates. It asks no server.
    ///
    /// # Errors
    /// [`EmailError`] if a setting cannot be used.
    pub fn new(options: &EmailOptions) -> Result<Self, EmailError> {
        if options.allow_to.is_empty() {
            return Err(EmailError::Nobody);
        }
        let roots = match &options.roots[..] {
            [] => None,
            roots => Some(Roots::new(roots)?),
        };
        let credentials = options.credentials.clone();
        let credentials = credentials.map(|(user, password)| Credentials::new(user, password));
        let parameters = options.tls_parameters()?;
        let server =
            Server::new(options.place.clone(), parameters, options.client_id(), credentials);
        let rules = Rules {
            from: options.from.clone(),
            allow_from: options.allow_from.clone(),
            allow_to: options.allow_to.clone(),
            max_size: options.max_size,
            roots,
        };
        Ok(Self { rules: Arc::new(rules), server: Arc::new(server) })
    }

    /// The function, for [`WorkerBuilder::handle_raw`](forebay_worker::WorkerBuilder::handle_raw).
    pub fn handler<S: Send + Sync + 'static>(
        self,
    ) -> impl Fn(Bytes, Context<S>) -> BoxFuture<'static, JobResult<Output>> + Send + Sync + 'static
    {
        move |payload, cx| {
            let email = self.clone();
            async move {
                let deadline = Instant::now() + before(cx.remaining());
                email.run(payload, cx.id().to_owned(), deadline).await
            }
            .boxed()
        }
    }

    async fn run(self, payload: Bytes, job_id: String, deadline: Instant) -> JobResult<Output> {
        let rules = self.rules;
        // Attachments are read from a disk, which may be slow.
        let mail = tokio::task::spawn_blocking(move || rules.mail(&payload, &job_id)).await??;
        let answer = self.server.hand_over(&mail, deadline).await?;
        let result = json!({
            "message_id": mail.id,
            "server": self.server.place.to_string(),
            "answer": answer,
            "recipients": mail.to.len(),
            "bytes": mail.bytes.len(),
        });
        Ok(Output::from_json(result.to_string().into_bytes()))
    }
}
