//! `forebay doctor`: what it finds, that its commands mend it, and that it changes nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_producer::testing::{self, Broker, OwnBroker};
use forebay_producer::{Producer, QueueType};
use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time;

use super::{Call, broker, dead, forebay, somewhere};

const DOCTOR: [&str; 3] = ["doctor", "--queue", "mail"];

/// How it ended and what it saw.
struct Seen {
    code: Option<i32>,
    report: Value,
}

async fn examined(mut call: Call) -> Seen {
    call.command.args(["--output", "json"]);
    let ran = call.run().await;
    assert!(!format!("{}{}", ran.out, ran.err).contains("hush"), "{}{}", ran.out, ran.err);
    Seen { code: ran.code, report: ran.json() }
}

async fn doctor(broker: &Broker) -> Seen {
    examined(forebay(broker, &DOCTOR)).await
}

impl Seen {
    fn checks(&self) -> &Vec<Value> {
        self.report["checks"].as_array().expect("a list")
    }

    /// The worst check of that id.
    fn check(&self, id: &str) -> &Value {
        let rank = |check: &Value| {
            ["ok", "note", "warning", "fault"].iter().position(|level| check["level"] == *level)
        };
        let found = self.checks().iter().filter(|check| check["id"] == id).max_by_key(|c| rank(c));
        found.unwrap_or_else(|| panic!("no {id} in {:#}", self.report))
    }

    /// Expects an exit code, and a check with a level and words.
    fn says(&self, code: i32, id: &str, level: &str, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{:#}", self.report);
        let check = self.check(id);
        assert_eq!(check["level"], level, "{check:#}");
        for word in words {
            assert!(check.to_string().contains(word), "`{word}` is not in {check:#}");
        }
    }

    /// Whether there is a check with that level and word.
    fn has(&self, id: &str, level: &str, word: &str) -> bool {
        self.checks().iter().any(|check| {
            check["id"] == id && check["level"] == level && check.to_string().contains(word)
        })
    }

    fn well(&self) {
        assert_eq!(self.code, Some(0), "{:#}", self.report);
        assert_eq!(
            (&self.report["faults"], &self.report["warnings"]),
            (&json!(0), &json!(0)),
            "{:#}",
            self.report
        );
    }

    /// Every command of warnings and faults, each once.
    fn mends(&self) -> Vec<String> {
        let mut commands = Vec::new();
        for check in self.checks() {
            if check["level"] == "warning" || check["level"] == "fault" {
                for command in check["mend"].as_array().expect("a list") {
                    let command = command.as_str().expect("text").to_owned();
                    if !commands.contains(&command) {
                        commands.push(command);
                    }
                }
            }
        }
        commands
    }
}

/// Runs a command as a shell reads it; `rabbitmqctl` goes to the broker's container.
async fn run(line: &str, broker: &Broker, own: Option<&OwnBroker>) {
    let Some(arguments) = line.strip_prefix("rabbitmqctl ") else {
        let path = std::env::var("PATH").unwrap_or_default();
        let binary = std::path::Path::new(env!("CARGO_BIN_EXE_forebay"));
        let here = binary.parent().expect("a folder").display();
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).env("PATH", format!("{here}:{path}"));
        shell.env("AMQP_URL", broker.url()).env("FOREBAY_NAMESPACE", broker.namespace());
        let directory = tempfile::tempdir().expect("a directory");
        let out = shell.current_dir(directory.path()).output().await.expect("a shell");
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        return;
    };
    let words = format!("printf '%s\\n' {arguments}");
    let out = Command::new("sh").args(["-c", &words]).output().await.expect("a shell").stdout;
    let words = String::from_utf8(out).expect("UTF-8");
    let words: Vec<_> = words.lines().collect();
    own.expect("a broker of its own").ctl(&words).await;
}

async fn declared(broker: &Broker) {
    broker.owns("mail");
    let apply = ["topology", "apply", "--queue", "mail", "--delays", "0.2s"];
    forebay(broker, &apply).succeed().await;
}

async fn channel(broker: &Broker) -> lapin::Channel {
    let connection = Connection::connect(broker.url(), ConnectionProperties::default()).await;
    connection.expect("connected").create_channel().await.expect("a channel")
}

/// As somebody else would declare it.
async fn declare_otherwise(broker: &Broker, name: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(5));
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(10));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let channel = channel(broker).await;
    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.expect("deleted");
    channel.queue_declare(name.into(), options, arguments).await.expect("declared");
}

#[tokio::test]
async fn a_healthy_broker_has_no_warning() {
    let broker = broker().await;
    declared(&broker).await;
    let seen = doctor(&broker).await;
    seen.well();
    for id in ["broker.version", "broker.login", "topology.declared", "permissions.worker"] {
        seen.says(0, id, "ok", &[]);
    }
    let page = forebay(&broker, &DOCTOR).succeed().await.out;
    assert!(page.ends_with("\nall is well\n"), "{page}");
    assert!(!page.contains('\u{1b}'), "no colours in a pipe: {page}");
}

#[tokio::test]
async fn what_is_missing_is_a_warning_and_its_command_makes_it() {
    let broker = broker().await;
    broker.owns("mail");
    let seen = doctor(&broker).await;
    seen.says(0, "topology.queue", "warning", &["mail.dead", "topology apply --queue mail"]);
    let strict = examined(forebay(&broker, &[&DOCTOR[..], &["--strict"]].concat())).await;
    assert_eq!(strict.code, Some(1));
    let never = forebay(&broker, &DOCTOR).env("FOREBAY_DECLARE", "never");
    examined(never).await.says(1, "topology.queue", "fault", &["FOREBAY_DECLARE=never"]);
    // Looking has not declared anything.
    doctor(&broker).await.says(0, "topology.queue", "warning", &["mail.dead"]);
    for line in seen.mends() {
        run(&line, &broker, None).await;
    }
    doctor(&broker).await.well();
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_told_argument_by_argument_and_mended() {
    let broker = broker().await;
    declared(&broker).await;
    declare_otherwise(&broker, &format!("{}.mail", broker.namespace())).await;
    let seen = doctor(&broker).await;
    seen.says(
        1,
        "topology.queue",
        "fault",
        &[
            "x-delivery-limit is 5 (declared 100)",
            "x-max-length is 10 (declared without)",
            "x-dead-letter-exchange is not set (declared",
            "x-overflow is not set (declared reject-publish)",
        ],
    );
    for line in seen.mends() {
        run(&line, &broker, None).await;
    }
    doctor(&broker).await.well();
}

#[tokio::test]
async fn a_queue_of_another_type_is_a_warning() {
    let broker = broker().await;
    broker.owns("mail");
    let apply = ["topology", "apply", "--delays", "0s"];
    let classic = forebay(&broker, &apply).manifest("[queues.mail]\ntype = \"classic\"");
    classic.succeed().await;
    let seen = examined(forebay(&broker, &["doctor"]).manifest("[queues.mail]")).await;
    seen.says(0, "topology.queue", "warning", &["x-queue-type is classic (declared quorum)"]);
}

#[tokio::test]
async fn dead_letters_are_a_note_with_the_command_that_shows_them() {
    let broker = dead::three_letters().await;
    let seen = doctor(&broker).await;
    seen.says(0, "queues.dead", "note", &["3 dead letters", "forebay dead ls --queue mail"]);
}

#[tokio::test]
async fn jobs_that_nobody_takes_are_a_warning() {
    let broker = broker().await;
    declared(&broker).await;
    forebay(&broker, &["publish", "a.b", "{}", "--queue", "mail"]).succeed().await;
    doctor(&broker).await.says(0, "queues.backlog", "warning", &["1 job waits"]);
}

#[tokio::test]
async fn it_changes_nothing_and_takes_nothing() {
    let broker = broker().await;
    declared(&broker).await;
    forebay(&broker, &["publish", "a.b", "{}", "--queue", "mail"]).succeed().await;
    let all = ["queues", "--queue", "mail", "--queue", "other"];
    let before = forebay(&broker, &all).json().await;
    for declare in ["auto", "never"] {
        let call = forebay(&broker, &["doctor", "--queue", "mail", "--queue", "other"]);
        examined(call.env("FOREBAY_DECLARE", declare)).await;
    }
    assert_eq!(forebay(&broker, &all).json().await, before);
    let queue = broker.config().topology().queue("mail");
    let channel = channel(&broker).await;
    let got = channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await;
    let got = got.expect("an answer").expect("a job");
    assert!(!got.delivery.redelivered, "nobody has had it before");
}

#[tokio::test]
async fn nobody_who_listens_is_told_with_the_step_that_failed() {
    let call = somewhere("amqp://app:hush@127.0.0.1:1", &["doctor", "--timeout", "1s"]);
    examined(call).await.says(3, "broker.reach", "fault", &["no TCP to 127.0.0.1:1", "AMQP_URL"]);
}

#[tokio::test]
async fn a_stranger_on_the_port_is_told() {
    for (says, word) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "HTTP/1."),
        (b"\x15\x03\x01\0\x02\x02\x46", "amqps://"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                _ = stream.write_all(says).await;
                // What is unread at the end would reset the connection.
                _ = stream.read(&mut [0; 64]).await;
            }
        });
        let url = format!("amqp://app:hush@127.0.0.1:{port}");
        let seen = examined(somewhere(&url, &["doctor", "--timeout", "2s"])).await;
        seen.says(3, "broker.reach", "fault", &["no AMQP to", word]);
    }
}

#[tokio::test]
async fn wrong_credentials_and_a_missing_vhost_are_told_with_what_mends_them() {
    let broker = broker().await;
    let url = format!("amqp://nobody:hush@{}/%2f", broker.address());
    let seen = examined(somewhere(&url, &["doctor"])).await;
    seen.says(3, "broker.login", "fault", &["`nobody`", "change_password nobody"]);
    let url = format!("{}/nowhere", broker.url().trim_end_matches("/%2f"));
    let seen = examined(somewhere(&url, &["doctor"])).await;
    seen.says(3, "broker.vhost", "fault", &["`nowhere`", "rabbitmqctl add_vhost nowhere"]);
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_told_and_end_with_2() {
    let seen = examined(somewhere("nonsense", &["doctor"])).await;
    seen.says(2, "settings.usable", "fault", &["amqp://user:password@host"]);
    let call =
        somewhere("amqp://127.0.0.1:1", &["doctor"]).manifest("[broker]\nurl = \"amqp://a:hush");
    examined(call).await.says(2, "settings.usable", "fault", &["line 2"]);
}

/// Passes so many bytes of the broker's answers, over all connections, and then is gone for good.
async fn short_lived(target: String, bytes: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let left = Arc::new(Mutex::new(bytes));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass(client, target.clone(), Arc::clone(&left)));
        }
    });
    format!("amqp://guest:guest@{address}/%2f")
}

async fn pass(client: TcpStream, target: String, left: Arc<Mutex<usize>>) {
    let server = TcpStream::connect(&target).await.expect("the broker answers");
    let (mut from_server, mut to_server) = server.into_split();
    let (mut from_client, mut to_client) = client.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await };
    let down = async {
        let mut buffer = [0; 256];
        loop {
            let read = from_server.read(&mut buffer).await.unwrap_or(0);
            let mut left = left.lock().await;
            if read == 0 || *left < read {
                *left = 0;
                return;
            }
            *left -= read;
            _ = to_client.write_all(&buffer[..read]).await;
        }
    };
    tokio::select! {
        _ = up => (),
        () = down => (),
    }
}

#[tokio::test]
async fn a_broker_that_goes_away_in_the_middle_ends_it_and_what_was_seen_stays() {
    let broker = broker().await;
    declared(&broker).await;
    let url = short_lived(broker.address(), 3_000).await;
    let call = somewhere(&url, &[&DOCTOR[..], &["--timeout", "2s"]].concat());
    let seen = examined(call.env("FOREBAY_NAMESPACE", broker.namespace())).await;
    seen.says(3, "broker.lost", "fault", &["lost on the way"]);
    seen.says(3, "broker.version", "ok", &["RabbitMQ"]);
}

#[tokio::test]
async fn a_management_api_that_does_not_answer_is_a_warning() {
    let broker = broker().await;
    declared(&broker).await;
    let url = ["--management-url", "http://guest:hush@127.0.0.1:1"];
    let seen = examined(forebay(&broker, &[&DOCTOR[..], &url].concat())).await;
    seen.says(0, "management.reach", "warning", &["127.0.0.1:1 cannot be asked"]);
    seen.says(0, "topology.declared", "ok", &[]);
}

#[cfg(unix)]
#[tokio::test]
async fn the_manifest_is_checked_by_the_program_that_runs_it() {
    use std::os::unix::fs::PermissionsExt;

    let broker = broker().await;
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("forebay");
    std::fs::copy(env!("CARGO_BIN_EXE_forebay"), &copy).expect("a copy");
    let program = directory.path().join("forebay-run");
    let script = "#!/bin/sh\n[ \"$1\" = --check ] && printf 'a\\ntimeout: 5 is no duration\\n' >&2\nexit 2\n";
    std::fs::write(&program, script).expect("a script");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let mut call = forebay(&broker, &[]).manifest("[functions.\"a.b\"]\nexec = [\"true\"]");
    let mut command = Command::new(copy);
    command.args(["doctor"]).current_dir(call.directory.path());
    command.env("AMQP_URL", broker.url()).env("FOREBAY_NAMESPACE", broker.namespace());
    call.command = command;
    let seen = examined(call).await;
    seen.says(2, "manifest.functions", "fault", &["5 is no duration", "forebay run --check"]);
    let faults = seen.checks().iter().filter(|check| check["id"] == "manifest.functions");
    assert_eq!(faults.count(), 2, "one line each: {:#}", seen.report);
}

/// With a management API that answers.
async fn managed() -> (OwnBroker, Broker) {
    let own = testing::broker_of_its_own("").await;
    let broker = own.broker();
    declared(&broker).await;
    let answers = async {
        while doctor_with_api(&own, &broker).await.check("settings.broker")["level"] != "ok"
            || !doctor_with_api(&own, &broker)
                .await
                .report
                .to_string()
                .contains("management.broker")
        {
            time::sleep(Duration::from_millis(200)).await;
        }
    };
    time::timeout(Duration::from_secs(60), answers).await.expect("the API answers");
    (own, broker)
}

async fn doctor_with_api(own: &OwnBroker, broker: &Broker) -> Seen {
    let url = own.management_url();
    let arguments = [&DOCTOR[..], &["--management-url", &url]].concat();
    examined(forebay(broker, &arguments)).await
}

/// The API's figures lag behind by some seconds.
async fn until(own: &OwnBroker, broker: &Broker, settled: impl Fn(&Seen) -> bool) -> Seen {
    let deadline = time::Instant::now() + Duration::from_secs(60);
    loop {
        let seen = doctor_with_api(own, broker).await;
        if settled(&seen) {
            return seen;
        }
        assert!(time::Instant::now() < deadline, "after a minute: {:#}", seen.report);
        time::sleep(Duration::from_millis(200)).await;
    }
}

async fn until_well(own: &OwnBroker, broker: &Broker) -> Seen {
    until(own, broker, |seen| seen.report["worst"] == "ok" || seen.report["worst"] == "note").await
}

#[tokio::test]
async fn what_the_management_api_shows_is_told_and_its_commands_mend_it() {
    let (own, broker) = managed().await;
    until_well(&own, &broker).await.well();
    let (ns, topology) = (broker.namespace().to_owned(), broker.config().topology().clone());
    let channel = channel(&broker).await;

    // A binding is gone, and a policy limits all queues.
    let (mail, jobs) = (topology.queue("mail"), topology.jobs_exchange());
    let (queue, exchange) = (mail.as_str().into(), jobs.into());
    let unbound = channel.queue_unbind(queue, exchange, "mail".into(), FieldTable::default());
    unbound.await.expect("unbound");
    let pattern = format!("^{ns}");
    let definition = "{\"max-length\":10,\"message-ttl\":60000}";
    let policy = ["set_policy", "limits", &pattern, definition, "--apply-to", "queues"];
    own.ctl(&policy).await;
    // The API tells of the policy queue by queue: the fault, which is the job queue, may be last.
    let seen = until(&own, &broker, |seen| seen.has("topology.policy", "fault", "mail.dead")).await;
    seen.says(1, "topology.binding", "fault", &[&mail, "messages do not find their way"]);
    seen.says(1, "topology.policy", "fault", &["rabbitmqctl clear_policy -p / limits"]);
    for line in seen.mends() {
        run(&line, &broker, Some(&own)).await;
    }
    until_well(&own, &broker).await.well();

    // Somebody gets copies of all jobs.
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let (name, table) = ("audit".into(), FieldTable::default());
    channel.queue_declare(name, options, table).await.expect("declared");
    let (options, table) = (QueueBindOptions::default(), FieldTable::default());
    let bound = channel.queue_bind("audit".into(), jobs.into(), "mail".into(), options, table);
    bound.await.expect("bound");
    let seen = doctor_with_api(&own, &broker).await;
    seen.says(0, "topology.binding", "warning", &["`audit`", "-X DELETE", "/audit/mail"]);
    assert!(!seen.report.to_string().contains("guest:guest"), "{:#}", seen.report);

    // A memory alarm is seen by the API, and felt without it.
    own.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    until(&own, &broker, |seen| seen.has("management.alarm", "fault", "")).await;
    doctor(&broker).await.says(3, "broker.blocked", "fault", &["rabbitmq-diagnostics alarms"]);
}

#[tokio::test]
async fn a_limited_user_is_told_the_line_that_sets_what_it_lacks() {
    let own = testing::broker_of_its_own("").await;
    let broker = own.broker();
    declared(&broker).await;
    own.ctl(&["add_user", "limited", "hush"]).await;
    let url = broker.url().replace("guest:guest", "limited:hush");
    let seen = |role: &'static str, declare: &'static str| {
        let call = somewhere(&url, &[&DOCTOR[..], &["--role", role]].concat());
        let call = call.env("FOREBAY_NAMESPACE", broker.namespace());
        examined(call.env("FOREBAY_DECLARE", declare))
    };
    let outside = seen("publisher", "never").await;
    outside.says(3, "broker.vhost", "fault", &["rabbitmqctl set_permissions -p / limited"]);
    for (role, declare) in [
        ("publisher", "never"),
        ("worker", "never"),
        ("operator", "never"),
        ("publisher", "auto"),
        ("worker", "auto"),
    ] {
        own.ctl(&["set_permissions", "limited", "^$", "^$", "^$"]).await;
        let lacking = seen(role, declare).await;
        let id = format!("permissions.{role}");
        lacking.says(1, &id, "fault", &["`limited` lacks", "ACCESS_REFUSED"]);
        let line = lacking.check(&id)["mend"][0].as_str().expect("a line").to_owned();
        run(&line, &broker, Some(&own)).await;
        let mended = seen(role, declare).await;
        assert_eq!(mended.report["faults"], 0, "{role} {declare}: {:#}", mended.report);
        mended.says(0, &id, "ok", &[]);
    }
    // With what the line grants, work can really be done.
    let config = broker.config();
    let producer = Producer::new(&config);
    producer.declare("mail", QueueType::Quorum).await.expect("declared");
    let call = somewhere(&url, &["publish", "a.b", "{}", "--queue", "mail", "--delay", "0.1s"]);
    call.env("FOREBAY_NAMESPACE", broker.namespace()).succeed().await;
}

#[tokio::test]
async fn certificates_are_looked_at() {
    let authority = testing::Authority::new();
    let demands = "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true";
    let own = authority.broker(&authority.issue("rabbit", &["127.0.0.1"]), demands, &[]).await;
    let files = TempDir::new().expect("a folder");
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).expect("a file");
    let (cert, key) = authority.issue("worker", &[]).write(files.path(), "worker");
    let (old_cert, old_key) = authority.issue_expired("old", &[]).write(files.path(), "old");
    let password = files.path().join("password");
    std::fs::write(&password, "guest\n").expect("a file");
    let url = format!("amqps://guest:hush@{}/%2f", own.tls_address());
    let seen = |cert: Option<(&Path, &Path)>| {
        let mut call = somewhere(&url, &["doctor"]);
        call.command.env("AMQP_CA_FILE", &ca).env("AMQP_PASSWORD_FILE", &password);
        if let Some((cert, key)) = cert {
            call.command.env("AMQP_CERT_FILE", cert).env("AMQP_KEY_FILE", key);
        }
        examined(call)
    };
    let fine = seen(Some((&cert, &key))).await;
    fine.says(0, "broker.tls", "ok", &["TLSv1_3", "CN=rabbit", "days"]);
    fine.says(0, "broker.certificate", "ok", &["CN=worker", "days"]);
    seen(None).await.says(3, "broker.tls", "fault", &["wants a certificate", "AMQP_CERT_FILE"]);
    let old = seen(Some((&old_cert, &old_key))).await;
    old.says(3, "broker.tls", "fault", &["old.pem", "expired"]);

    // And what is published by flags, with a password that stands in no argument.
    let mut call = somewhere(&url, &["publish", "a.b", "{}"]);
    for (flag, file) in [
        ("--ca-file", &ca),
        ("--cert-file", &cert),
        ("--key-file", &key),
        ("--password-file", &password),
    ] {
        call.command.arg(flag).arg(file);
    }
    call.succeed().await;
    let alone = somewhere(&url, &["publish", "a.b", "{}", "--cert-file", "x"]).run().await;
    alone.failed(2, &["--cert-file", "--key-file"]);
}
