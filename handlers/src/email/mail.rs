//! From a job to a mail.
//! In: a payload, a job id, what is allowed. Out: the bytes to hand over and to whom, or which field
//! is wrong. It reads attachments and talks to nobody.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;

use anyhow::anyhow;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use forebay_worker::{JobError, JobResult, without_value};
use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Body, Mailbox, MessageBuilder, MultiPart, SinglePart};
use lettre::{Address, Message, address::Envelope};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use super::address::{self, Allowed};
use crate::roots::Roots;

/// The most recipients of one mail: every server must take as many (RFC 5321, 4.5.3.1.8).
const RECIPIENTS: usize = 100;
const ATTACHMENTS: usize = 100;
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
struct Job {
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
    text: Option<String>,
    html: Option<String>,
    in_reply_to: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    attachments: Vec<Attachment>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attachment {
    path: Option<PathBuf>,
    /// In base64.
    data: Option<String>,
    name: Option<String>,
    #[serde(rename = "type")]
    content_type: Option<String>,
    /// The name under which the HTML shows it, as `cid:NAME`.
    inline: Option<String>,
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

    fn with_body(&self, message: MessageBuilder, job: Job) -> JobResult<Message> {
        if job.attachments.len() > ATTACHMENTS {
            return Err(rejected(format!("it has more than {ATTACHMENTS} `attachments`")));
        }
        let (mut shown, mut attached) = (Vec::new(), Vec::new());
        let mut room = self.max_size;
        for (index, attachment) in job.attachments.into_iter().enumerate() {
            let is_shown = attachment.inline.is_some();
            let part = self.part(attachment, &mut room).map_err(|error| {
                let words = format!("`attachments[{index}]`: {}", error.message());
                error.because(anyhow!(words))
            })?;
            if is_shown { shown.push(part) } else { attached.push(part) }
        }
        let html = match (job.html, shown) {
            (None, shown) if shown.is_empty() => None,
            (None, _) => {
                return Err(rejected("an `inline` attachment needs `html` to show it".to_owned()));
            }
            (Some(html), shown) if shown.is_empty() => {
                Some(Piece::Single(SinglePart::html(lines(&html))))
            }
            (Some(html), shown) => {
                let related = MultiPart::related().singlepart(SinglePart::html(lines(&html)));
                Some(Piece::Multi(shown.into_iter().fold(related, MultiPart::singlepart)))
            }
        };
        let words = match (job.text.map(|text| SinglePart::plain(lines(&text))), html) {
            (None, None) => return Err(rejected("it has neither `text` nor `html`".to_owned())),
            (Some(text), None) => Piece::Single(text),
            (None, Some(html)) => html,
            (Some(text), Some(html)) => {
                Piece::Multi(html.within(MultiPart::alternative().singlepart(text)))
            }
        };
        let whole = if attached.is_empty() {
            words
        } else {
            let mixed = words.within(MultiPart::mixed().build());
            Piece::Multi(attached.into_iter().fold(mixed, MultiPart::singlepart))
        };
        let message = match whole {
            Piece::Single(part) => message.singlepart(part),
            Piece::Multi(part) => message.multipart(part),
        };
        message.map_err(JobError::reject)
    }

    fn part(&self, attachment: Attachment, room: &mut usize) -> JobResult<SinglePart> {
        let of_path = attachment.path.as_deref().and_then(|path| path.file_name()?.to_str());
        let name = match (&attachment.name, of_path) {
            (Some(name), _) => line("name", name)?.to_owned(),
            (None, Some(name)) => line("path", name)?.to_owned(),
            (None, None) => return Err(rejected("it has no `name`".to_owned())),
        };
        let kind = attachment.content_type.as_deref().unwrap_or("application/octet-stream");
        let kind = ContentType::parse(line("type", kind)?)
            .map_err(|_| rejected(format!("`type` is {kind:?}; write it as \"image/png\"")))?;
        let bytes = self.content(&attachment, room)?;
        // Always in base64, whatever it holds: nothing in it can then be taken for a line of SMTP.
        let body = Body::new_with_encoding(bytes, ContentTransferEncoding::Base64)
            .map_err(|_| rejected("it cannot be encoded".to_owned()))?;
        let part = match attachment.inline {
            Some(id) if is_word(&id) => lettre::message::Attachment::new_inline_with_name(id, name),
            Some(id) => {
                let what = format!("`inline` is {id:?}; use letters, digits, `.`, `_` and `-`");
                return Err(rejected(what));
            }
            None => lettre::message::Attachment::new(name),
        };
        Ok(part.body(body, kind))
    }

    fn content(&self, attachment: &Attachment, room: &mut usize) -> JobResult<Vec<u8>> {
        let full = || rejected(format!("with it the mail is {}", larger(self.max_size)));
        let bytes = match (&attachment.path, &attachment.data) {
            (None, Some(data)) => {
                if data.len() / 4 * 3 > room.saturating_add(2) {
                    return Err(full());
                }
                let broken = |error| rejected(format!("`data` is no base64: {error}"));
                STANDARD.decode(data).map_err(broken)?
            }
            (Some(path), None) => {
                let none = || "`path` is given, and the function has no `roots` to read from";
                let roots = self.roots.as_ref().ok_or_else(|| rejected(none().to_owned()))?;
                let file = roots.open(path)?;
                if file.metadata()?.len() > *room as u64 {
                    return Err(full());
                }
                let mut bytes = Vec::new();
                file.take(*room as u64 + 1).read_to_end(&mut bytes)?;
                bytes
            }
            _ => return Err(rejected("it needs either `path` or `data`".to_owned())),
        };
        *room = room.checked_sub(bytes.len()).ok_or_else(full)?;
        Ok(bytes)
    }
}

/// A part of the body.
enum Piece {
    Single(SinglePart),
    Multi(MultiPart),
}

impl Piece {
    fn within(self, outer: MultiPart) -> MultiPart {
        match self {
            Self::Single(part) => outer.singlepart(part),
            Self::Multi(part) => outer.multipart(part),
        }
    }
}

fn rejected(what: String) -> JobError {
    JobError::reject(anyhow!(what))
}

fn larger(most: usize) -> String {
    format!("larger than the {most} bytes of `max_size`")
}

/// A text that goes into a header: on one line, so that it cannot begin a header of its own.
fn line<'t>(field: &str, text: &'t str) -> JobResult<&'t str> {
    match text.chars().any(char::is_control) {
        true => Err(rejected(format!("`{field}` has a line break or another control character"))),
        false => Ok(text),
    }
}

/// One sort of line ends. A lone carriage return is a line end for some servers and none for others,
/// and what two servers read differently can be two mails for the second one.
fn lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
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

fn is_word(text: &str) -> bool {
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
