//! Handing one mail to the server, command by command.
//! In: a mail, a connection. Out: what the server said when it took it; otherwise who refused what,
//! and whether it is worth another try.

use std::fmt;
use std::sync::Arc;

use anyhow::anyhow;
use forebay_worker::{JobError, JobResult};
use lettre::Address;
use lettre::transport::smtp;
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt, Rset};
use lettre::transport::smtp::extension::{Extension, MailBodyParameter, MailParameter};
use lettre::transport::smtp::response::Response;
use tokio::time::{self, Instant};

use super::mail::Mail;
use super::server::{Place, Server, words};

/// What the server is asked.
#[derive(Debug, Clone, Copy)]
enum Step<'m> {
    From(&'m Address),
    To(&'m Address),
    Data,
    Content,
}

/// A negative answer.
#[derive(Debug)]
struct Refusal<'m> {
    step: Step<'m>,
    code: u16,
    said: String,
}

impl Server {
    /// Hands over a mail and returns the server's answer: its code and what it calls the mail.
    ///
    /// All recipients or none: if one is refused, the mail is not sent to the others, so that the
    /// next try does not reach anybody twice.
    pub(super) async fn hand_over(
        self: &Arc<Self>,
        mail: &Mail,
        deadline: Instant,
    ) -> JobResult<String> {
        let mut connection = self.connection(deadline).await?;
        let talk = Talk { place: &self.place, deadline };
        let smtp = &mut connection.smtp;

        let parameters =
            parameters(mail, &self.place, |what| smtp.server_info().supports_feature(what))?;
        let from = MailFrom::new(Some(mail.from.clone()), parameters);
        let step = Step::From(&mail.from);
        if let Err(refusal) = talk.ask(step, smtp.command(from)).await? {
            return Err(talk.refused(&[refusal], 0));
        }
        let mut refusals = Vec::new();
        for to in &mail.to {
            let asked = smtp.command(Rcpt::new(to.clone(), Vec::new()));
            if let Err(refusal) = talk.ask(Step::To(to), asked).await? {
                let is_leaving = refusal.code == 421;
                refusals.push(refusal);
                if is_leaving {
                    break;
                }
            }
        }
        if !refusals.is_empty() {
            let error = talk.refused(&refusals, mail.to.len());
            if time::timeout_at(deadline, smtp.command(Rset)).await.is_ok_and(|reset| reset.is_ok())
            {
                self.keep(connection).await;
            }
            return Err(error);
        }
        if let Err(refusal) = talk.ask(Step::Data, smtp.command(Data)).await? {
            return Err(talk.refused(&[refusal], 0));
        }
        match talk.ask(Step::Content, smtp.message(&mail.bytes)).await? {
            Ok(answer) => {
                self.keep(connection).await;
                Ok(shown(&answer))
            }
            Err(refusal) => Err(talk.refused(&[refusal], 0)),
        }
    }
}

struct Talk<'s> {
    place: &'s Place,
    deadline: Instant,
}

impl Talk<'_> {
    /// # Errors
    /// When there is no answer; a negative one is a `Refusal`.
    async fn ask<'m>(
        &self,
        step: Step<'m>,
        answer: impl Future<Output = Result<Response, smtp::Error>>,
    ) -> JobResult<Result<Response, Refusal<'m>>> {
        let why = match time::timeout_at(self.deadline, answer).await {
            Ok(Ok(response)) => return Ok(Ok(response)),
            Ok(Err(error)) => match error.status() {
                Some(code) => {
                    return Ok(Err(Refusal { step, code: u16::from(code), said: words(&error) }));
                }
                None => words(&error),
            },
            Err(_) => "its time is over".to_owned(),
        };
        let place = self.place;
        Err(JobError::retry(match step {
            Step::Content => anyhow!(
                "no answer from {place} to {step}: {why}. It may have been taken; another try may \
                 deliver it again, under the same Message-ID"
            ),
            _ => anyhow!("no answer from {place} to {step}: {why}"),
        }))
    }

    /// One refusal, or all of those of some recipients.
    fn refused(&self, refusals: &[Refusal<'_>], recipients: usize) -> JobError {
        let place = self.place;
        let each: Vec<_> = refusals.iter().map(Refusal::to_string).collect();
        let each = each.join("; ");
        let cause = match recipients {
            0 | 1 => anyhow!("{place} answered {each}"),
            _ => anyhow!(
                "{place} refused {} of {recipients} recipients, so nobody was sent the mail: {each}",
                refusals.len()
            ),
        };
        if refusals.iter().any(|refusal| is_final(refusal.code)) {
            JobError::reject(cause)
        } else {
            JobError::retry(cause)
        }
    }
}

/// Whether a code says that this mail will never be taken. Codes about logging in are about the
/// settings: mails wait until those are right.
fn is_final(code: u16) -> bool {
    (500..600).contains(&code) && !matches!(code, 530 | 534 | 535 | 538)
}

fn parameters(
    mail: &Mail,
    place: &Place,
    offers: impl Fn(Extension) -> bool,
) -> JobResult<Vec<MailParameter>> {
    let mut parameters = Vec::new();
    let all = || mail.to.iter().chain([&mail.from]);
    if let Some(address) = all().find(|address| !AsRef::<str>::as_ref(address).is_ascii()) {
        if !offers(Extension::SmtpUtfEight) {
            return Err(JobError::reject(anyhow!(
                "{place} takes no addresses with letters beyond ASCII before the @ (SMTPUTF8), such \
                 as {address}"
            )));
        }
        parameters.push(MailParameter::SmtpUtfEight);
    }
    if !mail.bytes.is_ascii() {
        parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
    }
    Ok(parameters)
}

fn shown(answer: &Response) -> String {
    let lines: Vec<_> = answer.message().collect();
    let text: String = lines.join(" ").chars().filter(|c| !c.is_control()).take(500).collect();
    format!("{} {text}", answer.code())
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(address) => write!(f, "MAIL FROM:<{address}>"),
            Self::To(address) => write!(f, "RCPT TO:<{address}>"),
            Self::Data => f.write_str("DATA"),
            Self::Content => f.write_str("the mail itself"),
        }
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} to {}", self.code, self.said, self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_about_the_mail_is_final() {
        let cases = [
            (421, false), // leaving
            (450, false), // greylisted
            (452, false), // no room
            (500, true),
            (530, false), // log in first
            (534, false),
            (535, false), // wrong password
            (538, false),
            (550, true), // no such mailbox
            (552, true), // too large
            (554, true),
        ];
        for (code, so) in cases {
            assert_eq!(is_final(code), so, "{code}");
        }
    }

    #[test]
    fn one_recipient_that_will_never_be_taken_decides_for_all() {
        let place = Place::parse("smtp://mail.example.org").unwrap();
        let talk = Talk { place: &place, deadline: Instant::now() };
        let (ada, eve): (Address, Address) =
            ("ada@example.org".parse().unwrap(), "eve@example.org".parse().unwrap());
        let refusal = |to, code| Refusal { step: Step::To(to), code, said: "no".to_owned() };
        let error = talk.refused(&[refusal(&ada, 450), refusal(&eve, 550)], 3);
        assert_eq!(
            error.message(),
            "mail.example.org:587 refused 2 of 3 recipients, so nobody was sent the mail: \
             450 no to RCPT TO:<ada@example.org>; 550 no to RCPT TO:<eve@example.org>"
        );
        assert!(format!("{error:?}").contains("Reject"));
        assert!(format!("{:?}", talk.refused(&[refusal(&ada, 450)], 3)).contains("Retry"));
    }
}
