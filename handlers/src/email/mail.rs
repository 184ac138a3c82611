//! From a job to a mail.
//! In: a payload, a job id, what is allowed. Out: the bytes to hand over and to whom, or which field
//! is wrong. It reads attachments and talks to nobody.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::anyhow;
use forebay_worker::{JobError, JobResult, without_value};
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder};
use lettre::{Address, Message, address::Envelope};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use super::address::{self, Allowed};
use crate::roots::Roots;

/// The most recipients of one mail: every server must take as many (RFC 5321, 4.5.3.1.8).
const RECIPIENTS: usize = 100;
const HEADERS: usize = 50;

/// Headers besides `X-…` and `List-…` that a payload may set.
const OPEN: [&str; 7] = [
    "auto-submitted",
    "comments",
    "feedback-id",
    "importance",
    "keywords",
    "organization",
    "precedence",
];

/// What payloads may ask for.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) from: Option<Mailbox>,
    pub(super) allow_from: Allowed,
    pub(super) allow_to: Allowed,
    pub(super) max_size: usize,
    pub(super) roots: Option<Roots>,
}

/// A mail, ready to be handed over.
#[derive(Debug)]
pub(super) struct Mail {
    /// With its angle brackets.
    pub(super) id: String,
    pub(super) from: Address,
    pub(super) to: Vec<Address>,
    pub(super) bytes: Vec<u8>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Job {
    #[serde(default)]
    to: List,
    #[serde(default)]
    cc: List,
    #[serde(default)]
    bcc: List,
    #[serde(default)]
    reply_to: List,
    from: Option<String>,
    subject: String,
    pub(super) text: Option<String>,
    pub(super) html: Option<String>,
    in_reply_to: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) attachments: Vec<Attachment>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attachment {
    pub(super) path: Option<PathBuf>,
    /// In base64.
    pub(super) data: Option<String>,
    pub(super) name: Option<String>,
    #[serde(rename = "type")]
    pub(super) content_type: Option<String>,
    /// The name under which the HTML shows it, as `cid:NAME`.
    pub(super) inline: Option<String>,
}

/// One text, or a list of them.
#[derive(Debug, Default)]
struct List(Vec<String>);

impl Rules {
    /// Makes the mail. Everything that is wrong with the payload is rejected by its field's name.
    pub(super) fn mail(&self, payload: &[u8], job_id: &str) -> JobResult<Mail> {
        let job: Job = serde_json::from_slice(payload).map_err(|error| {
            rejected(format!(
                "a job looks like {{\"to\": …, \"subject\": …, \"text\": …}}: {}",
                without_value(&error.to_string())
            ))
        })?;
        let from = self.sender(job.from.as_deref())?;
        let [to, cc, bcc] = [("to", &job.to), ("cc", &job.cc), ("bcc", &job.bcc)]
            .map(|(field, list)| self.recipients(field, list));
        let (to, cc, bcc) = (to?, cc?, bcc?);
        let recipients = once_each([&to, &cc, &bcc])?;
        let id = message_id(job_id, from.email.domain());

        let envelope = Envelope::new(Some(from.email.clone()), recipients.clone());
        let envelope = envelope.map_err(JobError::reject)?;
        let mut message = Message::builder()
            .envelope(envelope)
            .message_id(Some(id.clone()))
            .from(from.clone())
            .subject(line("subject", &job.subject)?);
        message = to.into_iter().fold(message, MessageBuilder::to);
        message = cc.into_iter().fold(message, MessageBuilder::cc);
        for reply_to in &job.reply_to.0 {
            message = message.reply_to(read("reply_to", reply_to)?);
        }
        if let Some(other) = &job.in_reply_to {
            let other = other_id(other)?;
            message = message.in_reply_to(other.clone()).references(other);
        }
        message = headers(message, &job.headers)?;
        let message = self.with_body(message, job)?;

        let bytes = message.formatted();
        let (length, most) = (bytes.len(), self.max_size);
        if length > most {
            return Err(rejected(format!("the mail has {length} bytes, {}", larger(most))));
        }
        Ok(Mail { id, from: from.email, to: recipients, bytes })
    }

    fn sender(&self, from: Option<&str>) -> JobResult<Mailbox> {
        let Some(from) = from else {
            let none = || rejected("it has no `from`, and the function has no default".to_owned());
            return self.from.clone().ok_or_else(none);
        };
        let from = read("from", from)?;
        let is_default = self.from.as_ref().is_some_and(|default| default.email == from.email);
        if is_default || self.allow_from.has(&from.email) {
            return Ok(from);
        }
        Err(rejected(format!("`from` is {}, which `allow_from` does not have", from.email)))
    }

    fn recipients(&self, field: &str, list: &List) -> JobResult<Vec<Mailbox>> {
        let mailboxes = list.0.iter().map(|text| {
            let mailbox = read(field, text)?;
            if !self.allow_to.has(&mailbox.email) {
                let (address, allowed) = (&mailbox.email, &self.allow_to);
                return Err(rejected(format!(
                    "`{field}` has {address}, which `allow_to` does not have ({allowed})"
                )));
            }
            Ok(mailbox)
        });
        mailboxes.collect()
    }
}

pub(super) fn rejected(what: String) -> JobError {
    JobError::reject(anyhow!(what))
}

pub(super) fn larger(most: usize) -> String {
    format!("larger than the {most} bytes of `max_size`")
}

/// A text that goes into a header: on one line, so that it cannot begin a header of its own.
pub(super) fn line<'t>(field: &str, text: &'t str) -> JobResult<&'t str> {
    match text.chars().any(char::is_control) {
        true => Err(rejected(format!("`{field}` has a line break or another control character"))),
        false => Ok(text),
    }
}

fn read(field: &str, text: &str) -> JobResult<Mailbox> {
    address::mailbox(text).map_err(|why| rejected(format!("`{field}`: {why}")))
}

fn once_each(lists: [&[Mailbox]; 3]) -> JobResult<Vec<Address>> {
    let mut addresses: Vec<Address> = Vec::new();
    for mailbox in lists.into_iter().flatten() {
        if !addresses.contains(&mailbox.email) {
            addresses.push(mailbox.email.clone());
        }
    }
    match addresses.len() {
        0 => Err(rejected("it has no recipient: add `to`, `cc` or `bcc`".to_owned())),
        1..=RECIPIENTS => Ok(addresses),
        count => Err(rejected(format!(
            "it has {count} recipients, more than {RECIPIENTS}: publish several jobs"
        ))),
    }
}

/// The same in every run of a job, so that a mail that comes twice can be told to be one.
fn message_id(job_id: &str, domain: &str) -> String {
    let is_fit = is_word(job_id) && !job_id.starts_with('.') && !job_id.ends_with('.');
    if is_fit && !job_id.contains("..") {
        return format!("<{job_id}@{domain}>");
    }
    format!("<{}@{domain}>", hex::encode(&Sha256::digest(job_id.as_bytes())[..16]))
}

pub(super) fn is_word(text: &str) -> bool {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && text.len() <= 200 && text.chars().all(fit)
}

fn other_id(text: &str) -> JobResult<String> {
    let inner = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    let fit = |c: char| c.is_ascii_graphic() && !matches!(c, '<' | '>');
    match inner {
        Some(inner) if text.len() <= 500 && inner.contains('@') && inner.chars().all(fit) => {
            Ok(text.to_owned())
        }
        _ => Err(rejected(format!("`in_reply_to` is {text:?}; write it as \"<id@example.org>\""))),
    }
}

fn headers(
    mut message: MessageBuilder,
    headers: &BTreeMap<String, String>,
) -> JobResult<MessageBuilder> {
    if headers.len() > HEADERS {
        return Err(rejected(format!("it has more than {HEADERS} `headers`")));
    }
    for (name, value) in headers {
        let low = name.to_ascii_lowercase();
        let is_open =
            OPEN.contains(&&*low) || ["x-", "list-"].iter().any(|begin| low.starts_with(begin));
        let is_token = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let known = HeaderName::new_from_ascii(name.clone());
        let (true, true, Ok(header)) = (is_open, is_token, known) else {
            return Err(rejected(format!(
                "`headers` has {name:?}, which a job may not set; it may set X-…, List-…, {}",
                OPEN.join(", ")
            )));
        };
        let value = line(&format!("headers.{name}"), value)?;
        if value.len() > 2000 {
            return Err(rejected(format!("`headers.{name}` has more than 2000 bytes")));
        }
        message = message.raw_header(HeaderValue::new(header, value.to_owned()));
    }
    Ok(message)
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = List;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<List, E> {
                Ok(List(vec![text.to_owned()]))
            }

            fn visit_unit<E>(self) -> Result<List, E> {
                Ok(List::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<List, A::Error> {
                let mut list = Vec::new();
                while let Some(text) = texts.next_element()? {
                    list.push(text);
                }
                Ok(List(list))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}
