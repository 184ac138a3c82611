//! The built-in `email.send`, on a real mail server.

use std::fs;
use std::path::Path;
use std::time::Duration;

use forebay_handlers::{Email, EmailError, EmailOptions, SmtpTls};
use forebay_worker::testing::{self, Fate};
use forebay_worker::{Envelope, HandlerOptions, QueueOptions, Worker};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::smtp::{Certificates, MailServer};
use crate::support::{Site, last_words};

/// Without TLS and login, to anybody.
fn plain(server: &MailServer) -> EmailOptions {
    to_port(server.port)
}

fn to_port(port: u16) -> EmailOptions {
    EmailOptions::new(&format!("smtp://localhost:{port}"))
        .unwrap()
        .tls(SmtpTls::None)
        .unwrap()
        .from("Shop <shop@example.org>")
        .unwrap()
        .allow_to(["*"])
        .unwrap()
}

fn worker(options: &EmailOptions) -> Worker<()> {
    worker_with(options, HandlerOptions::new())
}

fn worker_with(options: &EmailOptions, handler: HandlerOptions) -> Worker<()> {
    let email = Email::new(options).unwrap();
    Worker::builder(())
        .queue("default", QueueOptions::new())
        .handle_raw(Email::NAME, handler, email.handler())
        .build()
        .unwrap()
}

async fn send(worker: &Worker<()>, payload: Value) -> Fate {
    send_as(worker, "job-1", payload).await
}

async fn send_as(worker: &Worker<()>, id: &str, payload: Value) -> Fate {
    let mut job = Envelope::new(Email::NAME, "default", payload.to_string());
    job.id = id.to_owned();
    testing::run_envelope(worker, job).await
}

fn to(address: &str) -> Value {
    json!({ "to": address, "subject": "Hello", "text": "Hello\n.\nyou\n" })
}

fn done(fate: Fate) -> Value {
    let Fate::Done(result) = fate else { panic!("{fate:?}") };
    result
}

/// The failure of a job that comes again.
fn again(fate: Fate) -> String {
    let Fate::Again { message, attempt: 2, .. } = fate else { panic!("{fate:?}") };
    message
}

/// The failure of a job that was rejected.
fn dead(fate: Fate) -> String {
    let Fate::Dead { reason, message } = fate else { panic!("{fate:?}") };
    assert_eq!(reason, "rejected");
    message
}

#[tokio::test]
async fn a_mail_arrives_as_it_was_meant_over_starttls_with_a_password() {
    let certificates = Certificates::new();
    let mut settings = certificates.settings();
    settings["user"] = json!("shop");
    settings["password"] = json!("hush");
    let server = MailServer::start(settings).await;
    let options = EmailOptions::new(&format!("smtp://localhost:{}", server.port)).unwrap();
    let options = options
        .ca(&certificates.ca)
        .credentials("shop", "hush")
        .hello("worker.example.org")
        .unwrap()
        .from("Läden & Söhne <shop@example.org>")
        .unwrap()
        .allow_to(["example.org"])
        .unwrap();
    let result = done(
        send(
            &worker(&options),
            json!({
                "to": ["Ada Lovelace <ada@example.org>", "bob@example.org"],
                "cc": "\"Curie, Marie\" <marie@example.org>",
                "bcc": ["eve@example.org", "ada@example.org"],
                "reply_to": "help@example.com",
                "subject": "Grüße, и спасибо",
                "text": "Zeile eins\nZeile zwei: ü\n.\n..\nend",
                "html": "<p>ü <img src=\"cid:logo\"></p>",
                "in_reply_to": "<order-7@example.com>",
                "headers": {
                    "X-Order": "7", "List-Unsubscribe": "<https://example.org/unsubscribe?a=1>"
                },
                "attachments": [
                    { "data": "aGVsbG8=", "name": "größe.txt", "type": "text/plain" },
                    { "data": "AAH/", "name": "logo.png", "type": "image/png", "inline": "logo" }
                ]
            }),
        )
        .await,
    );
    assert_eq!(result["message_id"], "<job-1@example.org>");
    assert_eq!(result["recipients"], 4);
    assert_eq!(result["server"], format!("localhost:{}", server.port));
    assert!(result["answer"].as_str().unwrap().starts_with("250 2.0.0 OK queued as TEST"));

    let hello = server.saw(2, "hello").await.remove(1);
    assert_eq!((&hello["name"], &hello["tls"]), (&json!("worker.example.org"), &json!(true)));
    let mail = server.saw(1, "mail").await.remove(0);
    assert_eq!(mail["sender"], "shop@example.org");
    let recipients = ["ada@example.org", "bob@example.org", "marie@example.org", "eve@example.org"];
    assert_eq!(mail["to"], json!(recipients));
    let headers = &mail["headers"];
    assert_eq!(headers["from"], "Läden & Söhne <shop@example.org>");
    assert_eq!(headers["to"], "Ada Lovelace <ada@example.org>, bob@example.org");
    assert_eq!(headers["cc"], "\"Curie, Marie\" <marie@example.org>");
    assert_eq!(headers["bcc"], Value::Null);
    assert_eq!(headers["reply-to"], "help@example.com");
    assert_eq!(headers["subject"], "Grüße, и спасибо");
    assert_eq!(headers["message-id"], "<job-1@example.org>");
    assert_eq!(headers["in-reply-to"], "<order-7@example.com>");
    assert_eq!(headers["references"], "<order-7@example.com>");
    assert_eq!(headers["x-order"], "7");
    assert_eq!(headers["list-unsubscribe"], "<https://example.org/unsubscribe?a=1>");
    assert!(headers["date"].is_string());
    let parts = mail["parts"].as_array().unwrap();
    assert_eq!(parts.len(), 4, "{parts:#?}");
    let text = parts[0]["content"].as_str().unwrap().replace("\r\n", "\n");
    assert_eq!(text.trim_end(), "Zeile eins\nZeile zwei: ü\n.\n..\nend");
    assert_eq!(parts[1]["type"], "text/html");
    let shown = (&parts[2]["shown_as"], &parts[2]["content"]);
    assert_eq!(shown, (&json!("<logo>"), &json!("\u{0}\u{1}\u{ff}")));
    assert_eq!((&parts[3]["name"], &parts[3]["content"]), (&json!("größe.txt"), &json!("hello")));
}

#[tokio::test]
async fn tls_from_the_start_works_too() {
    let certificates = Certificates::new();
    let mut settings = certificates.settings();
    settings["implicit"] = json!(true);
    let server = MailServer::start(settings).await;
    let options = EmailOptions::new(&format!("smtps://localhost:{}", server.port)).unwrap();
    let options = options.ca(&certificates.ca).from("shop@example.org").unwrap();
    let worker = worker(&options.allow_to(["*"]).unwrap());
    done(send(&worker, to("ada@example.org")).await);
    assert_eq!(server.saw(1, "hello").await[0]["tls"], true);
}

#[tokio::test]
async fn a_connection_is_used_again_and_a_lost_one_replaced() {
    let server = MailServer::start(json!({})).await;
    let worker = worker(&plain(&server));
    for _ in 0..2 {
        done(send(&worker, to("ada@example.org")).await);
    }
    let mails = server.saw(2, "mail").await;
    assert_eq!(mails[0]["connection"], mails[1]["connection"]);

    let port = server.port;
    server.stop().await;
    let down = again(send(&worker, to("ada@example.org")).await);
    let begin = format!("no connection to localhost:{port}: ");
    assert!(down.starts_with(&begin) && down.contains("refused"), "{down}");

    let server = MailServer::start(json!({ "port": port })).await;
    done(send(&worker, to("ada@example.org")).await);
    server.saw(1, "mail").await;
}

#[tokio::test]
async fn a_recipient_that_is_put_off_gets_the_mail_later_and_nobody_gets_it_twice() {
    let answers = json!({ "grey@example.org": ["450 4.2.0 greylisted", "451 4.2.0 still"] });
    let server = MailServer::start(json!({ "answers": answers })).await;
    let worker = worker(&plain(&server));
    let payload = json!({
        "to": ["ada@example.org", "grey@example.org"], "subject": "s", "text": "t"
    });
    let first = again(send(&worker, payload.clone()).await);
    assert_eq!(
        first,
        format!(
            "localhost:{} refused 1 of 2 recipients, so nobody was sent the mail: \
             450 4.2.0 greylisted to RCPT TO:<grey@example.org>",
            server.port
        )
    );
    again(send(&worker, payload.clone()).await);
    assert!(server.events("mail").is_empty());
    done(send(&worker, payload).await);
    let mail = server.saw(1, "mail").await.remove(0);
    assert_eq!(mail["to"], json!(["ada@example.org", "grey@example.org"]));
    assert_eq!(mail["headers"]["message-id"], "<job-1@example.org>");
}

#[tokio::test]
async fn what_is_refused_for_good_is_a_dead_letter_with_code_words_and_command() {
    let answers = json!({
        "nobody@example.org": "550 5.1.1 no such user",
        "grey@example.org": "450 4.2.0 greylisted",
        "shop@example.com": "553 5.7.1 not your address",
        "DATA": ["552 5.3.4 too large", "451 4.3.0 try later"],
    });
    let server = MailServer::start(json!({ "answers": answers })).await;
    let worker = worker(&plain(&server).allow_from(["example.com"]).unwrap());
    let place = format!("localhost:{}", server.port);
    assert_eq!(
        dead(send(&worker, to("nobody@example.org")).await),
        format!("{place} answered 550 5.1.1 no such user to RCPT TO:<nobody@example.org>")
    );
    let mut payload = to("ada@example.org");
    payload["cc"] = json!(["grey@example.org", "nobody@example.org"]);
    let several = dead(send(&worker, payload).await);
    assert!(
        several.contains("refused 2 of 3 recipients, so nobody was sent the mail"),
        "{several}"
    );
    let mut payload = to("ada@example.org");
    payload["from"] = json!("shop@example.com");
    let sender = dead(send(&worker, payload).await);
    assert!(sender.ends_with("553 5.7.1 not your address to MAIL FROM:<shop@example.com>"));
    let content = dead(send(&worker, to("ada@example.org")).await);
    assert!(content.ends_with("answered 552 5.3.4 too large to the mail itself"), "{content}");
    let later = again(send(&worker, to("ada@example.org")).await);
    assert!(later.ends_with("answered 451 4.3.0 try later to the mail itself"), "{later}");
    assert!(server.events("mail").is_empty());
}

#[tokio::test]
async fn a_wrong_password_is_not_the_mails_fault_and_is_not_tried_by_every_job() {
    let server = MailServer::start(json!({ "user": "shop", "password": "hush" })).await;
    let worker = worker(&plain(&server).credentials("shop", "wrong-1"));
    let first = again(send(&worker, to("ada@example.org")).await);
    assert!(first.contains("answered 535 5.7.8") && first.contains("correct `user`"), "{first}");
    let second = again(send(&worker, to("bob@example.org")).await);
    assert!(second.contains("it is asked again after 30 s"), "{second}");
    assert!(!format!("{first}{second}{worker:?}").contains("wrong-1"));
    assert_eq!(server.saw(1, "login").await.len(), 1);
}

#[tokio::test]
async fn a_server_that_wants_a_login_gets_its_mails_once_there_is_one() {
    let server = MailServer::start(json!({ "user": "shop", "password": "hush" })).await;
    let asked = again(send(&worker(&plain(&server)), to("ada@example.org")).await);
    assert!(asked.contains("answered 530 5.7.0"), "{asked}");
    let worker = worker(&plain(&server).credentials("shop", "hush"));
    done(send(&worker, to("ada@example.org")).await);
}

#[tokio::test]
async fn nothing_goes_to_a_server_without_tls_or_with_a_certificate_that_is_not_trusted() {
    let server = MailServer::start(json!({ "user": "shop", "password": "hush" })).await;
    let url = format!("smtp://localhost:{}", server.port);
    let options = EmailOptions::new(&url).unwrap().credentials("shop", "hush");
    let options = options.from("shop@example.org").unwrap().allow_to(["*"]).unwrap();
    let open = again(send(&worker(&options), to("ada@example.org")).await);
    assert!(open.contains("does not offer STARTTLS"), "{open}");

    let (certificates, foreign) = (Certificates::new(), Certificates::new());
    let mut settings = certificates.settings();
    settings["user"] = json!("shop");
    settings["password"] = json!("hush");
    let other = MailServer::start(settings).await;
    // Another issuer; another name than the certificate's.
    for (host, ca) in [("localhost", &foreign.ca), ("127.0.0.1", &certificates.ca)] {
        let options = EmailOptions::new(&format!("smtp://{host}:{}", other.port)).unwrap();
        let options = options.credentials("shop", "hush").ca(ca);
        let options = options.from("shop@example.org").unwrap().allow_to(["*"]).unwrap();
        let words = again(send(&worker(&options), to("ada@example.org")).await);
        let begin = format!("no TLS with {host}:{}: invalid peer certificate", other.port);
        assert!(words.starts_with(&begin) && words.contains("`ca`"), "{words}");
    }
    for server in [server, other] {
        assert!(server.events("login").is_empty() && server.events("mail").is_empty());
    }
}

#[tokio::test]
async fn a_server_that_falls_silent_costs_one_run_and_no_other_mail() {
    let silent = MailServer::start(json!({ "silent": "RCPT" })).await;
    let soon = HandlerOptions::new().timeout(Duration::from_secs(1));
    let worker = worker_with(&plain(&silent), soon);
    let words = again(send(&worker, to("ada@example.org")).await);
    let expected = format!(
        "no answer from localhost:{} to RCPT TO:<ada@example.org>: its time is over",
        silent.port
    );
    assert_eq!(words, expected);
    silent.saw(1, "silent").await;
    // What was left amid a mail is not used again.
    again(send(&worker, to("bob@example.org")).await);
    assert_eq!(silent.saw(2, "silent").await.len(), 2);
    assert_eq!(silent.events("hello").len(), 2);
}

#[tokio::test]
async fn a_lost_answer_is_told_and_the_second_copy_has_the_same_message_id() {
    let server = MailServer::start(json!({ "cut": true })).await;
    let worker = worker(&plain(&server));
    for id in ["<job-1@example.org>", "<job-1@example.org>"] {
        let words = again(send(&worker, to("ada@example.org")).await);
        assert!(
            words.contains("It may have been taken; another try may deliver it again"),
            "{words}"
        );
        assert!(server.saw(1, "mail").await.iter().all(|mail| mail["headers"]["message-id"] == id));
    }
    assert_eq!(server.saw(2, "mail").await.len(), 2);
}

#[tokio::test]
async fn no_field_can_begin_a_header_or_a_command_of_its_own() {
    let server = MailServer::start(json!({})).await;
    let options = plain(&server).allow_from(["*"]).unwrap();
    let worker = worker(&options);
    let evil = "x\r\nBcc: eve@example.com";
    let cases = [
        ("to", json!({ "to": "ada@example.org\r\nRCPT TO:<eve@example.com>" })),
        ("to", json!({ "to": "ada@example.org>\nDATA" })),
        ("cc", json!({ "cc": ["A\r\nBcc: eve@example.com\r\n <ada@example.org>"] })),
        ("bcc", json!({ "bcc": "ada@exa\u{0}mple.org" })),
        ("reply_to", json!({ "reply_to": "ada@example.org\nX: y" })),
        ("from", json!({ "from": "Shop\r\nBcc: eve@example.com\r\n <shop@example.org>" })),
        ("subject", json!({ "subject": evil })),
        ("subject", json!({ "subject": "a\rb" })),
        ("in_reply_to", json!({ "in_reply_to": "<a@b>\r\nBcc: eve@example.com" })),
        ("headers.X-A", json!({ "headers": { "X-A": evil } })),
        ("headers", json!({ "headers": { "X-A\r\nBcc": "eve@example.com" } })),
        ("headers", json!({ "headers": { "X-A: b\nBcc": "eve@example.com" } })),
        ("headers", json!({ "headers": { "Bcc": "eve@example.com" } })),
        ("headers", json!({ "headers": { "to": "eve@example.com" } })),
        ("headers", json!({ "headers": { "Content-Type": "text/html" } })),
        ("name", json!({ "attachments": [{ "data": "", "name": evil }] })),
        ("type", json!({ "attachments": [{ "data": "", "name": "a", "type": "a/b\r\nX: y" }] })),
        (
            "inline",
            json!({ "html": "h", "attachments": [{ "data": "", "name": "a", "inline": evil }] }),
        ),
    ];
    for (field, change) in cases {
        let mut payload = to("ada@example.org");
        for (key, value) in change.as_object().unwrap() {
            payload[key] = value.clone();
        }
        let words = dead(send(&worker, payload).await);
        assert!(words.contains(&format!("`{field}`")), "{field}: {words}");
    }
    assert!(server.events("hello").is_empty());
    // A line of the body that looks like the end of the mail is a line of the body, and so is one
    // that only some servers would take for it.
    let mut payload = to("ada@example.org");
    payload["text"] = json!("a\r\n.\r\nMAIL FROM:<eve@example.com>\r\nb\n.\r\nc\r.\rd");
    payload["attachments"] = json!([{ "data": "YQ0KLg0KTUFJTA==", "name": "a.txt" }]);
    done(send(&worker, payload).await);
    let mail = server.saw(1, "mail").await.remove(0);
    let text = mail["parts"][0]["content"].as_str().unwrap().replace("\r\n", "\n");
    assert_eq!(text.trim_end(), "a\n.\nMAIL FROM:<eve@example.com>\nb\n.\nc\n.\nd");
    assert_eq!(mail["parts"][1]["content"], "a\r\n.\r\nMAIL");
}

#[tokio::test]
async fn only_allowed_addresses_are_written_to_and_from() {
    let server = MailServer::start(json!({})).await;
    let options = plain(&server).allow_to(["example.org", "partner@example.com"]).unwrap();
    let worker = worker(&options);
    for address in ["ada@example.org", "partner@example.com"] {
        done(send(&worker, to(address)).await);
    }
    for (field, address) in [("to", "eve@example.com"), ("cc", "a@x.example.org"), ("bcc", "a@b.c")]
    {
        let mut payload = to("ada@example.org");
        payload[field] = json!(address);
        let words = dead(send(&worker, payload).await);
        let expected = format!("`{field}` has {address}, which `allow_to` does not have");
        assert!(words.starts_with(&expected), "{words}");
    }
    let mut payload = to("ada@example.org");
    payload["from"] = json!("The boss <boss@example.org>");
    let words = dead(send(&worker, payload.clone()).await);
    assert_eq!(words, "`from` is boss@example.org, which `allow_from` does not have");
    payload["from"] = json!("Another name <shop@example.org>");
    done(send(&worker, payload).await);
    assert_eq!(server.saw(3, "mail").await.len(), 3);
}

#[tokio::test]
async fn attachments_come_from_the_roots_and_within_the_size() {
    let server = MailServer::start(json!({})).await;
    let (inside, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(inside.path().join("a.pdf"), b"%PDF").unwrap();
    fs::write(outside.path().join("secret"), b"secret").unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), inside.path().join("link")).unwrap();
    fs::write(inside.path().join("large"), vec![b'a'; 50_000]).unwrap();
    let options = plain(&server).roots([inside.path()]).max_size(20_000);
    let rooted = worker(&options);
    let with = |attachment: Value| {
        let mut payload = to("ada@example.org");
        payload["attachments"] = json!([attachment]);
        payload
    };
    let path = |folder: &TempDir, name: &str| folder.path().join(name).display().to_string();
    done(send(&rooted, with(json!({ "path": path(&inside, "a.pdf") }))).await);
    let mail = server.saw(1, "mail").await.remove(0);
    let part = &mail["parts"][1];
    assert_eq!((&part["name"], &part["content"]), (&json!("a.pdf"), &json!("%PDF")));
    let cases = [
        (json!({ "path": path(&outside, "secret") }), "is outside the folders"),
        (json!({ "path": path(&inside, "link") }), "is outside the folders"),
        (json!({ "path": path(&inside, "missing") }), "No such file"),
        (json!({ "path": path(&inside, "large") }), "larger than the 20000 bytes of `max_size`"),
        (json!({ "data": "A".repeat(40_000), "name": "a" }), "larger than the 20000 bytes"),
        // Base64 makes it larger.
        (json!({ "data": "A".repeat(24_000), "name": "a" }), "the mail has"),
        (json!({ "data": "not base64!", "name": "a" }), "`data` is no base64"),
        (json!({ "data": "AAAA" }), "it has no `name`"),
        (json!({ "name": "a" }), "it needs either `path` or `data`"),
        (json!({ "data": "AAAA", "name": "a", "type": "nonsense" }), "`type` is \"nonsense\""),
        (json!({ "data": "AAAA", "name": "a", "inline": "x" }), "needs `html` to show it"),
    ];
    for (attachment, words) in cases {
        let found = dead(send(&rooted, with(attachment.clone())).await);
        assert!(found.contains(words), "{attachment}: {found}");
    }
    let bare = worker(&plain(&server));
    let found = dead(send(&bare, with(json!({ "path": path(&inside, "a.pdf") }))).await);
    assert!(found.contains("has no `roots` to read from"), "{found}");
    assert_eq!(server.events("mail").len(), 1);
}

#[tokio::test]
async fn what_is_missing_misspelt_or_too_much_is_named() {
    let worker = worker(&to_port(1));
    let many: Vec<_> = (0..101).map(|n| format!("a{n}@example.org")).collect();
    for (payload, words) in [
        (json!({ "subject": "s", "text": "t" }), "it has no recipient"),
        (json!({ "to": [], "subject": "s", "text": "t" }), "it has no recipient"),
        (json!({ "to": "a@b.c", "text": "t" }), "missing field `subject`"),
        (json!({ "to": "a@b.c", "subject": "s" }), "neither `text` nor `html`"),
        (json!({ "to": "a@b.c", "subject": "s", "txt": "t" }), "unknown field `txt`"),
        (json!({ "to": 7, "subject": "s", "text": "t" }), "a text or a list of texts"),
        (json!({ "to": "ada", "subject": "s", "text": "t" }), "`to`: \"ada\" is no address"),
        (
            json!({ "to": many, "subject": "s", "text": "t" }),
            "it has 101 recipients, more than 100",
        ),
        (json!("x"), "a job looks like"),
    ] {
        let found = dead(send(&worker, payload.clone()).await);
        assert!(found.contains(words), "{payload}: {found}");
    }
}

#[tokio::test]
async fn any_job_id_makes_a_message_id() {
    let server = MailServer::start(json!({})).await;
    let worker = worker(&plain(&server));
    for id in ["0192-a.b_c", "order 7", "a@b", "<x>", "é", "..", "a\"b"] {
        for _ in 0..2 {
            done(send_as(&worker, id, to("ada@example.org")).await);
        }
    }
    let mails = server.saw(14, "mail").await;
    let ids: Vec<_> =
        mails.iter().map(|mail| mail["headers"]["message-id"].as_str().unwrap()).collect();
    assert_eq!(ids[0], "<0192-a.b_c@example.org>");
    for pair in ids.chunks(2) {
        assert_eq!(pair[0], pair[1]);
        assert!(pair[0].starts_with('<') && pair[0].ends_with("@example.org>"), "{pair:?}");
    }
    let mut different = ids.clone();
    different.dedup();
    assert_eq!(different.len(), 7);
}

#[test]
fn what_cannot_work_on_this_machine_is_found_before_the_first_mail() {
    let options = || EmailOptions::new("smtp://mail.example.org").unwrap();
    assert!(matches!(Email::new(&options()), Err(EmailError::Nobody)));
    assert!(matches!(options().tls(SmtpTls::None), Err(EmailError::Open(_))));
    assert!(options().tls(SmtpTls::Insecure).is_ok());
    let open = || options().allow_to(["*"]).unwrap();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("no.pem");
    assert!(matches!(Email::new(&open().ca(&file)), Err(EmailError::Certificate { .. })));
    fs::write(&file, "no certificate").unwrap();
    assert!(matches!(Email::new(&open().ca(&file)), Err(EmailError::Certificate { .. })));
    let missing = open().roots([Path::new("/no/such/folder")]);
    assert!(matches!(Email::new(&missing), Err(EmailError::Roots(_))));
    for url in [
        "mail.example.org",
        "http://a",
        "smtp://",
        "smtp://u:p@a",
        "smtp://a/b",
        "smtp://a?tls=none",
    ] {
        assert!(matches!(EmailOptions::new(url), Err(EmailError::Url(_))), "{url}");
    }
    let shown = format!("{:?}", options().credentials("shop", "hush"));
    assert!(shown.contains("shop") && !shown.contains("hush"), "{shown}");
}

#[tokio::test]
async fn jobs_of_a_manifest_become_mails_or_dead_letters() {
    let certificates = Certificates::new();
    let mut settings = certificates.settings();
    settings["user"] = json!("shop");
    settings["password"] = json!("hush-1");
    settings["answers"] = json!({ "nobody@example.org": "550 5.1.1 no such user" });
    let server = MailServer::start(settings).await;
    let site = Site::with(&format!(
        "use = \"email.send\"\nsmtp = \"smtp://localhost:{}\"\nca = \"ca.pem\"\nuser = \"shop\"\n\
         password_env = \"SMTP_PASSWORD\"\nfrom = \"Shop <shop@example.org>\"\n\
         allow_to = [\"example.org\"]\nroots = [\".\"]",
        server.port
    ))
    .await;
    fs::copy(&certificates.ca, site.file("ca.pem")).unwrap();

    let check = site.command(&["--check"]).output().await.unwrap();
    let text = String::from_utf8(check.stderr).unwrap();
    let words = "variable `SMTP_PASSWORD` with the password is not set; set it to the password";
    assert!(text.contains(words), "{text}");
    let check = site.command(&["--check"]).env("SMTP_PASSWORD", "hush-1").output().await.unwrap();
    let text = String::from_utf8(check.stdout).unwrap();
    assert!(text.contains(&format!("email.send by localhost:{}", server.port)), "{text}");
    assert!(text.contains(" 15 ") && !text.contains("hush-1"), "{text}");

    let mut command = site.command(&[]);
    command.env("SMTP_PASSWORD", "hush-1");
    let run = crate::support::Run::start(command);
    let path = site.file("forebay.toml");
    let result = site
        .call(json!({
            "to": "ada@example.org", "subject": "s", "text": "t", "attachments": [{ "path": path }]
        }))
        .await
        .unwrap();
    let mail = server.saw(1, "mail").await.remove(0);
    assert_eq!(result["message_id"], mail["headers"]["message-id"]);
    assert_eq!(mail["parts"][1]["name"], "forebay.toml");
    site.publish(to("nobody@example.org")).await;
    let letter = site.dead().await;
    assert_eq!(letter.reason, "rejected");
    assert!(last_words(&letter).contains("550 5.1.1 no such user"), "{letter:?}");
    assert!(!format!("{:?}", run.log()).contains("hush-1"));
    run.drain().await;
}
