//! `use = "email.send"`: its keys.
//! In: a function's table. Out: the settings of the function, without the password.

use std::path::Path;

use toml::de::DeValue;

use super::built_in::folders;
use super::function::{Runs, check_variable};
use super::section::Section;
use super::units::{self, Read, wrong};
use crate::email::{EmailError, EmailOptions, SmtpTls};

pub(super) fn read(section: &mut Section<'_, '_>, folder: &Path) -> Option<Runs> {
    check_senders_and_recipients(section);
    let server = read_server(section);
    // What else is wrong is told as well when the server is.
    let mut options = server.clone().or_else(|| EmailOptions::new("smtp://localhost").ok())?;
    let mut change = |key, change: &dyn Fn(EmailOptions, &DeValue<'_>) -> Read<EmailOptions>| {
        let old = options.clone();
        if let Some(new) = section.get(key, |value| change(old, value)) {
            options = new;
        }
    };
    change("tls", &|options, value| match value.as_str() {
        Some("starttls") => put(options.tls(SmtpTls::StartTls)),
        Some("none") => put(options.tls(SmtpTls::None)),
        Some("insecure") => put(options.tls(SmtpTls::Insecure)),
        _ => Err(wrong(
            "is neither \"starttls\" nor \"none\" nor \"insecure\"",
            "TLS from the start is smtp = \"smtps://…\"",
        )),
    });
    change("ca", &|options, value| Ok(options.ca(folder.join(units::text(value)?))));
    change("hello", &|options, value| put(options.hello(&units::text(value)?)));
    change("from", &|options, value| put(options.from(&units::text(value)?)));
    change("allow_from", &|options, value| put(options.allow_from(units::texts(value)?)));
    change("allow_to", &|options, value| put(options.allow_to(units::texts(value)?)));
    change("max_size", &|options, value| Ok(options.max_size(units::size(value)?)));
    if let Some(roots) = folders(section, folder, "roots") {
        options = options.roots(roots);
    }
    let login = read_login(section);
    let (_, login) = (server?, login?);
    Some(Runs::Email { options: Box::new(options), login })
}

fn read_server(section: &mut Section<'_, '_>) -> Option<EmailOptions> {
    let remedy = "write it as \"smtp://mail.example.org\" or \"smtps://mail.example.org\"";
    if !section.has("smtp") {
        section.fault(
            format!("{} names no mail server", section.name),
            "add smtp = \"smtp://mail.example.org\"",
        );
    }
    let is_secured_at_once =
        matches!(section.peek("smtp"), Some(DeValue::String(url)) if url.starts_with("smtps:"));
    if is_secured_at_once {
        section.refuse(
            "tls",
            "says otherwise than smtps://, which is TLS from the start",
            "remove it, or write smtp = \"smtp://…\"",
        );
    }
    section.get("smtp", |value| {
        let url = units::text(value)?;
        EmailOptions::new(&url).map_err(|error| wrong(error.to_string(), remedy))
    })
}

fn check_senders_and_recipients(section: &Section<'_, '_>) {
    if !section.has("allow_to") {
        section.fault(
            format!("{} may write to nobody", section.name),
            "say to whom: allow_to = [\"example.org\"], or [\"*\"] for everybody",
        );
    }
    if !section.has("from") && !section.has("allow_from") {
        section.fault(
            format!("{} has no sender", section.name),
            "add from = \"Shop <shop@example.org>\", or allow_from for jobs that name their own",
        );
    }
}

/// User and variable of the password; the inner one is for no login, the outer one for a fault.
#[expect(clippy::option_option, reason = "absent and wrong are two things")]
fn read_login(section: &mut Section<'_, '_>) -> Option<Option<(String, String)>> {
    section.refuse(
        "password",
        "would stand readable in this file",
        "put it into an environment variable and name that: password_env = \"SMTP_PASSWORD\"",
    );
    let stated = ["user", "password_env"].map(|key| section.has(key));
    let user = section.get("user", units::text);
    let variable = section.get("password_env", |value| {
        let name = units::text(value)?;
        check_variable(&name)?;
        Ok(name)
    });
    match stated {
        [false, false] => Some(None),
        [true, true] => Some(Some((user?, variable?))),
        _ => {
            section.fault(
                format!("{} has only one of `user` and `password_env`", section.name),
                "add the other one",
            );
            None
        }
    }
}

fn put(changed: Result<EmailOptions, EmailError>) -> Read<EmailOptions> {
    changed.map_err(|error| {
        let remedy = match error {
            EmailError::Open(_) => {
                "take \"starttls\", or \"insecure\" if mails and password may be read on the way"
            }
            EmailError::Hello(_) => "write the name of this machine, as \"worker.example.org\"",
            _ => "write addresses as \"ada@example.org\", lists also with \"example.org\" or \"*\"",
        };
        wrong(error.to_string(), remedy)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Manifest;
    use super::*;

    /// The function with these lines, or the faults.
    fn function(lines: &str) -> Result<Runs, Vec<String>> {
        let text = format!("[functions.\"email.send\"]\nuse = \"email.send\"\n{lines}");
        match Manifest::parse(&text, "/srv/f") {
            Ok(manifest) => Ok(manifest.functions["email.send"].runs.clone()),
            Err(faults) => Err(faults.0.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn every_key_is_read_and_paths_are_relative_to_the_manifest() {
        let read = function(
            r#"
smtp = "smtp://mail.example.org:25"
tls = "insecure"
ca = "ca.pem"
hello = "worker.example.org"
user = "shop"
password_env = "SMTP_PASSWORD"
from = "Shop <shop@example.org>"
allow_from = ["*.example.org"]
allow_to = ["*"]
max_size = "1MB"
roots = ["files"]
"#,
        );
        let options = EmailOptions::new("smtp://mail.example.org:25").unwrap();
        let options = options.tls(SmtpTls::Insecure).unwrap().ca(Path::new("/srv/ca.pem"));
        let options = options.hello("worker.example.org").unwrap();
        let options = options.from("Shop <shop@example.org>").unwrap();
        let options = options.allow_from(["*.example.org"]).unwrap().allow_to(["*"]).unwrap();
        let options = options.max_size(1_000_000).roots(["/srv/files"]);
        let login = Some(("shop".to_owned(), "SMTP_PASSWORD".to_owned()));
        assert_eq!(read, Ok(Runs::Email { options: Box::new(options), login }));
    }

    #[test]
    fn what_is_missing_or_wrong_is_told_with_what_to_write() {
        let fine = "smtp = \"smtp://a\"\nfrom = \"a@b.c\"\nallow_to = [\"*\"]\n";
        assert!(function(fine).is_ok());
        let cases = [
            (
                String::new(),
                vec![
                    "1:12: [functions.\"email.send\"] may write to nobody; say to whom: allow_to = [\"example.org\"], or [\"*\"]",
                    "1:12: [functions.\"email.send\"] has no sender; add from = ",
                    "1:12: [functions.\"email.send\"] names no mail server; add smtp = ",
                ],
            ),
            (
                format!("{fine}password = \"hush\"\nuser = \"u\""),
                vec![
                    "1:12: [functions.\"email.send\"] has only one of `user` and `password_env`; add the other",
                    "6:1: `password` in [functions.\"email.send\"] would stand readable in this file; put it into",
                ],
            ),
            (
                fine.replace("smtp://a", "smtp://a.example") + "tls = \"none\"",
                vec![
                    "6:7: `tls` in [functions.\"email.send\"] does without TLS, and a.example:587 is not this machine; take",
                ],
            ),
            (
                fine.replace("smtp://a", "smtps://a") + "tls = \"starttls\"",
                vec!["6:1: `tls` in [functions.\"email.send\"] says otherwise than smtps://"],
            ),
            (
                fine.replace("smtp://a", "smtp://u:p@a"),
                vec![
                    "3:8: `smtp` in [functions.\"email.send\"] is no smtp:// or smtps:// URL: user and password",
                ],
            ),
            (
                fine.replace("a@b.c", "nobody").replace("\"*\"", "\"*@b.c\""),
                vec![
                    "4:8: `from` in [functions.\"email.send\"] cannot be used: \"nobody\" is no address: it has no @; write",
                    "5:12: `allow_to` in [functions.\"email.send\"] cannot be used: \"*@b.c\" has a *",
                ],
            ),
            (
                format!("{fine}hello = \"a b\"\nallow_form = [\"*\"]"),
                vec![
                    "6:9: `hello` in [functions.\"email.send\"] is \"a b\", which is no host name; write",
                    "7:1: unknown key `allow_form` in [functions.\"email.send\"]; did you mean `allow_from`?",
                ],
            ),
        ];
        for (lines, expected) in cases {
            let mut found = function(&lines).unwrap_err();
            found.sort();
            let mut expected: Vec<_> =
                expected.iter().map(|words| format!("/srv/f:{words}")).collect();
            expected.sort();
            assert_eq!(found.len(), expected.len(), "{lines}\n{found:#?}");
            for (found, expected) in found.iter().zip(&expected) {
                assert!(found.starts_with(expected), "{found}\n{expected}");
            }
            assert!(!found.iter().any(|words| words.contains("hush")), "{found:#?}");
        }
    }
}
