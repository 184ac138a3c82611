//! The way to the broker, step by step, and what answers at its end.
//! In: a configuration. Out: findings; and whether it makes sense to go on.

use std::time::Duration;

use forebay_producer::ConnectError;
use forebay_producer::link::examine::Examiner;
use forebay_producer::link::greeting::{Certificate, Encryption, Greeting, Step, Unheard};
use forebay_producer::link::greeting::{greetings, own_certificate};
use forebay_producer::wire::envelope::now_ms;
use tokio::time::Instant;

use super::finding::{Finding, Findings};
use crate::globals::Session;
use crate::screen::quoted;

/// Longer than that nobody waits before a screen.
const STEP: Duration = Duration::from_secs(5);

/// What is known of the broker that let us in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Broker {
    /// Major and minor version, if it told.
    pub(super) version: Option<(u32, u32)>,
}

/// Greets every host and logs in. `None`: there is no use in going on.
pub(super) async fn look(
    session: &Session,
    examiner: &Examiner,
    findings: &mut Findings,
) -> Option<Broker> {
    let mut greeted = None;
    let hosts = greetings(&session.config, session.timeout.min(STEP)).await;
    let several = hosts.len() > 1;
    for (host, greeting) in hosts {
        match greeting {
            Ok(greeting) => {
                findings.push(version(&host, &greeting));
                if let Some(encryption) = &greeting.encryption {
                    findings.push(tls(&host, encryption, now_ms()));
                }
                greeted.get_or_insert(greeting);
            }
            Err(unheard) => {
                let finding = silence(&host, &unheard);
                // Others may answer.
                findings.push(if several { as_warning(finding) } else { finding });
            }
        }
    }
    let Some(greeting) = greeted else {
        if several {
            let what = format!("none of the hosts {} answers", session.config.broker());
            findings.push(Finding::fault("broker.reach", what));
        }
        return None;
    };
    if let Some(own) = own_certificate(&session.config) {
        let what = format!("our certificate `{}`", own.subject);
        findings.push(expiry("broker.certificate", &what, &own, now_ms()));
    }
    match examiner.link().connected(Instant::now() + session.timeout).await {
        Ok((connection, _)) => {
            let agreed = connection.configuration();
            let heartbeat = agreed.heartbeat();
            let host = examiner.link().status().borrow().host.clone();
            // Else it was told above.
            let through = host.filter(|_| several).map(|host| format!(" through {host}"));
            findings.push(Finding::ok(
                "broker.login",
                format!(
                    "user `{}` may enter virtual host `{}`{}; heartbeat {heartbeat} s, frames up \
                     to {} bytes, up to {} channels",
                    session.config.user(),
                    session.config.vhost(),
                    through.unwrap_or_default(),
                    agreed.frame_max(),
                    agreed.channel_max()
                ),
            ));
            Some(Broker { version: parsed(&greeting.version) })
        }
        Err(error) => {
            findings.push(refusal(&error, &greeting));
            None
        }
    }
}

/// What depends on the version and can go wrong.
pub(super) fn features(broker: &Broker, managed: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if broker.version.is_some_and(|version| version < (4, 0)) && !managed {
        let what = "dead-lettering at least once needs the feature flag stream_queue, which cannot \
                    be seen over AMQP; enabling it twice does no harm";
        let finding = Finding::note("broker.features", what);
        findings.push(finding.mend("rabbitmqctl enable_feature_flag stream_queue"));
    }
    findings
}

fn version(host: &str, greeting: &Greeting) -> Finding {
    let Greeting { product, version, cluster, .. } = greeting;
    let who = format!("{product} {version} at {host}, cluster `{cluster}`");
    match parsed(version) {
        Some(old) if old < (3, 10) => Finding::warning(
            "broker.version",
            format!("{who}: older than 3.10, the oldest that Forebay is made for; update it"),
        ),
        Some(new) if new > (4, 3) => Finding::note(
            "broker.version",
            format!("{who}: newer than 4.3, the newest that Forebay was tried on"),
        ),
        Some(_) if product == "RabbitMQ" => Finding::ok("broker.version", who),
        _ => Finding::warning(
            "broker.version",
            format!("{who}: not a RabbitMQ whose version is known, Forebay was never tried on it"),
        ),
    }
}

fn tls(host: &str, encryption: &Encryption, now_ms: u64) -> Finding {
    let Encryption { version, suite, certificate, .. } = encryption;
    let what =
        format!("{host} has {version} with {suite}; its certificate `{}`", certificate.subject);
    expiry("broker.tls", &what, certificate, now_ms)
}

/// A certificate that ends soon ends at night.
fn expiry(id: &'static str, what: &str, certificate: &Certificate, now_ms: u64) -> Finding {
    let days = certificate.not_after_ms.saturating_sub(now_ms) / 86_400_000;
    match days {
        _ if certificate.not_after_ms == 0 => {
            Finding::note(id, format!("{what} cannot be read: see yourself when it ends"))
        }
        0..=14 => Finding::warning(id, format!("{what} ends in {days} days: have it renewed")),
        _ => Finding::ok(id, format!("{what} is valid for {days} days")),
    }
}

/// `4.3` of `4.3.6` or `4.3.0-rc.1`.
fn parsed(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-', '+']).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn silence(host: &str, Unheard { step, because }: &Unheard) -> Finding {
    let (step, remedy) = match step {
        Step::Tcp => ("TCP", "start RabbitMQ there, or correct host and port in AMQP_URL"),
        // Says it itself.
        Step::Tls => return Finding::fault("broker.tls", format!("no TLS to {host}: {because}")),
        Step::Amqp if because.contains("TLS") => ("AMQP", "write amqps:// in AMQP_URL"),
        Step::Amqp => ("AMQP", "correct the port in AMQP_URL: RabbitMQ has 5672, with TLS 5671"),
    };
    Finding::fault("broker.reach", format!("no {step} to {host}: {because}; {remedy}"))
}

fn as_warning(finding: Finding) -> Finding {
    Finding { level: super::finding::Level::Warning, ..finding }
}

fn refusal(error: &ConnectError, greeting: &Greeting) -> Finding {
    match error {
        ConnectError::Denied { user, because, .. } => {
            let mut what = format!(
                "the broker does not let user `{user}` in: {because}; correct user and password in \
                 AMQP_URL or AMQP_PASSWORD_FILE, or set the password anew"
            );
            if user == "guest" {
                what += "; RabbitMQ lets `guest` in from its own machine only";
            }
            if !greeting.mechanisms.split(' ').any(|one| one == "PLAIN") {
                what = format!("{what}; it offers {} only", greeting.mechanisms);
            }
            let password = format!("rabbitmqctl change_password {} NEW_PASSWORD", quoted(user));
            Finding::fault("broker.login", what).mend(password)
        }
        ConnectError::Vhost { user, vhost, because, .. } => {
            let missing = because.contains("not found") || because.contains("none of the");
            let what = format!(
                "user `{user}` may not enter virtual host `{vhost}`: {because}; or correct the \
                 last part of AMQP_URL"
            );
            let (user, vhost) = (quoted(user), quoted(vhost));
            let mut finding = Finding::fault("broker.vhost", what);
            if missing {
                finding = finding.mend(format!("rabbitmqctl add_vhost {vhost}"));
            }
            finding.mend(format!("rabbitmqctl set_permissions -p {vhost} {user} '.*' '.*' '.*'"))
        }
        other => Finding::fault("broker.reach", other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn versions_outside_of_what_was_tried_are_told() {
        for (text, level) in [
            ("3.9.29", Level::Warning),
            ("3.10.8", Level::Ok),
            ("4.3.6", Level::Ok),
            ("4.4.0-rc.1", Level::Note),
            ("5.0", Level::Note),
            ("unknown", Level::Warning),
        ] {
            let mut greeting = Greeting::default();
            (greeting.product, greeting.version) = ("RabbitMQ".to_owned(), text.to_owned());
            assert_eq!(version("a:1", &greeting).level, level, "{text}");
        }
    }

    #[test]
    fn a_certificate_that_ends_soon_is_a_warning() {
        const DAY: u64 = 86_400_000;
        let level = |days: u64| {
            let mut certificate = Certificate::default();
            certificate.not_after_ms = days * DAY;
            expiry("broker.tls", "", &certificate, 20_000 * DAY).level
        };
        assert_eq!(level(20_014), Level::Warning);
        assert_eq!(level(20_015), Level::Ok);
        assert_eq!((level(0), level(19_000)), (Level::Note, Level::Warning));
    }

    #[test]
    fn only_an_old_broker_without_a_management_api_is_told_of_its_flag() {
        let broker = |version| Broker { version };
        assert_eq!(features(&broker(Some((3, 10))), false).len(), 1);
        assert!(features(&broker(Some((3, 10))), true).is_empty());
        assert!(features(&broker(Some((4, 3))), false).is_empty());
    }
}
