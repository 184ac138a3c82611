//! The body of a mail: its texts and attachments.
//! In: what a job says of them. Out: one part, or several within each other; or the reason why not.

use std::io::Read;

use anyhow::anyhow;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use forebay_worker::{JobError, JobResult};
use lettre::Message;
use lettre::message::header::{ContentTransferEncoding, ContentType};
use lettre::message::{Body, MessageBuilder, MultiPart, SinglePart};

use super::mail::{Attachment, Job, Rules, is_word, larger, line, rejected};

const ATTACHMENTS: usize = 100;

impl Rules {
    pub(super) fn with_body(&self, message: MessageBuilder, job: Job) -> JobResult<Message> {
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

/// One sort of line ends. A lone carriage return is a line end for some servers and none for others,
/// and what two servers read differently can be two mails for the second one.
fn lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}
