//! What a running `forebay-run` tells about itself.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use forebay_producer::QueueType;
use forebay_producer::testing::broker_of_its_own;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{KIND, Run, Site, eventually};

/// A function that runs until `go` is there.
const WAITING: &str = "echo > begun; until [ -e go ]; do sleep 0.02; done";

async fn waiting() -> Site {
    let site = Site::with(r#"exec = ["/bin/sh", "wait.sh"]"#).await;
    site.write("wait.sh", WAITING);
    site
}

/// The value of the one line of a scrape with this name and all these labels.
fn value(scrape: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut lines = scrape.lines().filter_map(|line| {
        let (key, value) = line.rsplit_once(' ')?;
        let named = key.split('{').next() == Some(name);
        (named && labels.iter().all(|label| key.contains(label))).then(|| value.parse().unwrap())
    });
    let value = lines.next();
    assert_eq!(lines.next(), None, "more than one {name} {labels:?}\n{scrape}");
    value
}

#[tokio::test]
async fn it_is_alive_and_ready_once_it_consumes_and_shows_its_pages() {
    let site = Site::with("exec = [\"true\"]").await;
    let run = Run::start(site.command(&[]));
    run.says("/readyz", 200, "ready: consuming 1 of 1 queue\n").await;
    assert_eq!(run.page("/livez").await, (200, "alive\n".to_owned()));
    let (status, list) = run.page("/").await;
    assert_eq!(status, 404);
    for path in ["/livez", "/readyz", "/metrics", "/scale"] {
        assert!(list.contains(path), "{list}");
    }
    let (_, head, json) = run.ask("GET", "/readyz", "Accept: application/json\r\n").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    let json: Value = serde_json::from_str(&json).unwrap();
    let queue = json!({ "consuming": true, "because": null, "idle_seconds": 0 });
    assert_eq!(json, json!({ "ready": true, "draining": false, "queues": { "default": queue } }));
    assert_eq!(run.ask("POST", "/readyz", "").await.0, 405);
    let (status, head, body) = run.ask("HEAD", "/readyz", "").await;
    assert_eq!((status, body.as_str()), (200, ""), "{head}");
    run.drain().await;
}

#[tokio::test]
async fn a_queue_that_is_not_consumed_is_named_with_the_reason() {
    let site = Site::with("exec = [\"true\"]").await;
    let run = Run::start(site.command(&["--declare", "never"]));
    let text = run.says("/readyz", 503, "FOREBAY_DECLARE=never").await;
    assert!(text.starts_with("not ready: consuming 0 of 1 queue\ndefault: "), "{text}");
    assert_eq!(run.page("/livez").await.0, 200);
    run.signal(Signal::TERM);
    let (status, summary) = run.ended().await;
    assert_eq!(status.code(), Some(0), "{summary}");
}

#[tokio::test]
async fn a_broker_that_is_gone_is_named_until_it_is_back() {
    let broker = broker_of_its_own("").await;
    let manifest = format!("[functions.\"{KIND}\"]\nexec = [\"true\"]\n");
    let site = Site::on(broker.broker(), &manifest);
    let run = site.run().await;
    run.says("/readyz", 200, "ready").await;
    broker.stop().await;
    let text = run.says("/readyz", 503, &broker.address()).await;
    assert!(text.contains("default: "), "{text}");
    let scrape = run.page("/metrics").await.1;
    assert_eq!(value(&scrape, "forebay_connection_up", &["connection=\"consume\""]), Some(0.0));
    broker.start().await;
    run.says("/readyz", 200, "ready").await;
    let scrape = run.page("/metrics").await.1;
    assert_eq!(value(&scrape, "forebay_connection_up", &["connection=\"consume\""]), Some(1.0));
    assert_eq!(value(&scrape, "forebay_reconnects_total", &["connection=\"consume\""]), Some(1.0));
    assert_eq!(value(&scrape, "forebay_consumer_losses_total", &["default"]), Some(1.0));
    run.drain().await;
}

#[tokio::test]
async fn a_worker_that_may_not_look_at_dead_letters_works_without_their_number() {
    let own = broker_of_its_own("").await;
    let manifest = format!("[functions.\"{KIND}\"]\nexec = [\"true\"]\n");
    let site = Site::on(own.broker(), &manifest);
    site.producer.declare("default", QueueType::Quorum).await.unwrap();
    let namespace = site.broker.namespace();
    // The worker's user of docs/wire.md.
    let write = format!(r"^(amq\.default|{namespace}(\.dead-letters|\.delay\.[0-9]{{2}})?)$");
    let read = format!(r"^{namespace}\.[a-z0-9_-]+$");
    own.ctl(&["add_user", "limited", "hush"]).await;
    own.ctl(&["set_permissions", "limited", "^$", &write, &read]).await;
    let mut command = site.command(&["--declare", "never"]);
    command.env("AMQP_URL", own.url().replace("guest:guest", "limited:hush"));
    let run = Run::start(command);
    run.says("/readyz", 200, "ready").await;
    run.says("/metrics", 200, "forebay_queue_ready_jobs{queue=\"default\"} 0\n").await;
    // Before 4.3 nobody minds a look.
    if own.ctl(&["version"]).await.trim().starts_with("4.3") {
        let told = run.logged("it may not look", |line| {
            line["target"] == "forebay_worker::backlog" && line["level"] == "INFO"
        });
        let told = told.await.to_string();
        assert!(told.contains("default.dead") && !told.contains("hush"), "{told}");
        let scrape = run.page("/metrics").await.1;
        assert_eq!(value(&scrape, "forebay_dead_jobs", &[]), None);
        let scale: Value = serde_json::from_str(&run.page("/scale").await.1).unwrap();
        let mine = &scale["queues"]["default"];
        assert_eq!((&mine["ready"], &mine["dead"]), (&json!(0), &Value::Null), "{scale}");
    }
    site.publish(json!({})).await;
    run.says("/metrics", 200, "outcome=\"done\"} 1\n").await;
    let scrape = run.page("/metrics").await.1;
    assert_eq!(value(&scrape, "forebay_consumer_losses_total", &["default"]), Some(0.0));
    run.drain().await;
}

/// Does what its payload says, and writes down that it did.
const OBEDIENT: &str = r#"
exec = ["/bin/sh", "-c", 'read job; echo >> ran; case $job in *good*) exit 0;; *bad*) exit 65;; esac; exit 1']
retry = { max_attempts = 2, base = "100ms", jitter = false }
"#;

#[tokio::test]
async fn jobs_are_counted_by_what_became_of_them() {
    let site = Site::with(OBEDIENT).await;
    let run = site.run().await;
    for payload in ["good", "good", "bad", "retry"] {
        site.publish(json!(payload)).await;
    }
    // A stranger's kinds are not told apart, however many there are.
    for kind in ["stranger.one", "stranger.two"] {
        site.producer.publish_raw(kind, "{}", Default::default()).await.unwrap();
    }
    let kind = format!("kind=\"{KIND}\"");
    let mut scrape = String::new();
    eventually("all jobs are counted", async || {
        scrape = run.page("/metrics").await.1;
        let jobs = |kind: &str, outcome: &str| {
            let outcome = format!("outcome=\"{outcome}\"");
            value(&scrape, "forebay_jobs_total", &["queue=\"default\"", kind, &outcome])
        };
        let unknown = "kind=\"unknown\"";
        jobs(&kind, "done") == Some(2.0)
            && jobs(&kind, "retried") == Some(1.0)
            && jobs(&kind, "dead") == Some(2.0)
            && jobs(unknown, "put_off") >= Some(2.0)
    })
    .await;
    // The figures of one page are not of one moment.
    scrape = run.page("/metrics").await.1;
    assert!(!scrape.contains("stranger"), "{scrape}");
    let dead = |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        value(&scrape, "forebay_dead_letters_total", &["queue=\"default\"", &kind, &reason])
    };
    assert_eq!((dead("rejected"), dead("failed")), (Some(1.0), Some(1.0)));
    let of_default = |name: &str| value(&scrape, name, &["queue=\"default\""]);
    assert_eq!(value(&scrape, "forebay_job_duration_seconds_count", &[&kind]), Some(5.0));
    assert_eq!(value(&scrape, "forebay_job_duration_seconds_bucket", &[&kind, "+Inf"]), Some(5.0));
    // Four jobs and two strangers began for the first time.
    assert_eq!(of_default("forebay_job_wait_seconds_count"), Some(6.0));
    // One retry, two dead letters, two graces; counted when the broker has confirmed them.
    eventually("all publishes are counted", async || {
        scrape = run.page("/metrics").await.1;
        value(&scrape, "forebay_publishes_total", &["outcome=\"confirmed\""]) >= Some(5.0)
            && value(&scrape, "forebay_confirm_duration_seconds_count", &[]) >= Some(5.0)
    })
    .await;
    for connection in ["consume", "publish"] {
        let connection = format!("connection=\"{connection}\"");
        assert_eq!(value(&scrape, "forebay_connection_up", &[&connection]), Some(1.0));
        assert_eq!(value(&scrape, "forebay_connection_blocked", &[&connection]), Some(0.0));
    }
    run.drain().await;
}

#[tokio::test]
async fn the_sizes_at_the_broker_are_seen() {
    let site = Site::with(OBEDIENT).await;
    let run = site.run().await;
    site.publish(json!("bad")).await;
    site.dead().await;
    run.drain().await;
    let next = site.run().await;
    eventually("the dead letter is seen", async || {
        let scrape = next.page("/metrics").await.1;
        value(&scrape, "forebay_dead_jobs", &["queue=\"default\""]) == Some(1.0)
            && value(&scrape, "forebay_queue_ready_jobs", &["queue=\"default\""]) == Some(0.0)
    })
    .await;
    next.drain().await;
}

#[tokio::test]
async fn work_that_is_not_acknowledged_counts_for_autoscalers() {
    let site = Site::new(&format!(
        "[queues.default]\nconcurrency = 1\nprefetch = 2\n\
         [functions.\"{KIND}\"]\nexec = [\"/bin/sh\", \"wait.sh\"]\n"
    ))
    .await;
    site.write("wait.sh", WAITING);
    let run = site.run().await;
    site.publish(json!({})).await;
    site.publish(json!({})).await;
    site.appeared("begun").await;
    let mut scale = Value::Null;
    eventually("one runs and one is held", async || {
        scale = serde_json::from_str(&run.page("/scale").await.1).unwrap();
        scale["running"] == 1 && scale["held"] == 1 && scale["ready"] == 0
    })
    .await;
    assert_eq!((&scale["work"], &scale["concurrency"]), (&json!(2), &json!(1)), "{scale}");
    assert!(scale["oldest_seconds"].as_f64() > Some(0.0), "{scale}");
    assert_eq!(scale["queues"]["default"]["work"], 2);
    assert_eq!(scale["queues"]["default"]["rate"], 0.0);
    eventually("the gauges say the same", async || {
        let scrape = run.page("/metrics").await.1;
        let of_default = |name| value(&scrape, name, &["queue=\"default\""]);
        of_default("forebay_jobs_running") == Some(1.0)
            && of_default("forebay_deliveries_held") == Some(1.0)
            && of_default("forebay_concurrency") == Some(1.0)
            && of_default("forebay_consumer_up") == Some(1.0)
    })
    .await;
    site.write("go", "");
    eventually("both are done", async || {
        scale = serde_json::from_str(&run.page("/scale").await.1).unwrap();
        scale["work"] == 0 && scale["rate"].as_f64() > Some(0.0)
    })
    .await;
    assert_eq!(scale["oldest_seconds"], Value::Null);
    run.drain().await;
}

#[tokio::test]
async fn it_answers_while_it_drains() {
    let site = waiting().await;
    let run = site.run().await;
    site.publish(json!({})).await;
    site.appeared("begun").await;
    run.signal(Signal::TERM);
    run.says("/readyz", 503, "not ready: draining, running jobs: 1\ndefault: draining\n").await;
    assert_eq!(run.page("/livez").await.0, 200);
    run.says("/metrics", 200, "forebay_jobs_running{queue=\"default\"} 1\n").await;
    site.write("go", "");
    let (status, summary) = run.ended().await;
    assert_eq!(status.code(), Some(0), "{summary}");
}

#[tokio::test]
async fn an_address_that_was_asked_for_and_cannot_be_had_is_a_fault() {
    let site = Site::with("exec = [\"true\"]").await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (listen, words) in [
        (address.as_str(), "cannot listen at 127.0.0.1:"),
        ("192.0.2.1:9464", "cannot listen at 192.0.2.1:9464: "),
        ("9464", "--listen is \"9464\", which is no address to listen at; write it as HOST:PORT"),
    ] {
        let output = site.command(&["--listen", listen]).output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(words) && !text.contains("consuming"), "{text}");
    }
    let output = site.command(&["--listen", &address]).output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("in use") && text.contains("--listen off"), "{text}");

    site.write(
        "forebay.toml",
        &format!("[worker]\nlisten = \"{address}\"\n[functions.a]\nexec = [\"true\"]\n"),
    );
    let output = site.command(&[]).env_remove("FOREBAY_LISTEN").output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn two_workers_on_one_machine_work_without_being_told_anything() {
    // Whether the default address is free here or not: one of two workers does not get it.
    let site = Site::with("exec = [\"true\"]").await;
    let start = || {
        let mut command = site.command(&[]);
        command.env_remove("FOREBAY_LISTEN");
        Run::start(command)
    };
    let (one, two) = (start(), start());
    for run in [&one, &two] {
        run.logged("it consumes", |line| line["message"] == "consuming").await;
    }
    let lines = [one.log(), two.log()].concat();
    let warning = lines.iter().find(|line| {
        line["level"] == "WARN" && line["message"].as_str().is_some_and(|m| m.contains("--listen"))
    });
    assert_eq!(warning.unwrap()["address"], "127.0.0.1:9464");
    one.drain().await;
    two.drain().await;
}

#[tokio::test]
async fn off_means_that_nobody_is_answered() {
    let site = Site::with("exec = [\"true\"]").await;
    let run = Run::start(site.command(&["--listen", "off"]));
    run.logged("it consumes", |line| line["message"] == "consuming").await;
    assert!(!run.log().iter().any(|line| line["address"].is_string()));
    run.drain().await;
}

#[tokio::test]
async fn a_probe_asks_the_worker_and_needs_neither_broker_nor_manifest() {
    let site = Site::with("exec = [\"true\"]").await;
    let probe = async |arguments: &[&str], listen: &str| {
        let mut command =
            site.command(&[&["--config", "broken.toml", "--probe"], arguments].concat());
        command.env("FOREBAY_LISTEN", listen).env("AMQP_URL", "amqp://127.0.0.1:1");
        let output = command.output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let run = Run::start(site.command(&["--declare", "never"]));
    let address = run.address().await;
    run.says("/readyz", 503, "default: ").await;
    assert_eq!(probe(&[], &address).await, (0, "alive\n".to_owned(), String::new()));
    assert_eq!(probe(&["livez"], &address).await.0, 0);
    let (code, out, err) = probe(&["readyz"], &address).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("not ready: consuming 0 of 1 queue\ndefault: "), "{err}");

    // The address of a manifest counts, whatever else is wrong with it.
    let text = format!("[worker]\nlisten = \"{address}\"\ngrase = 1\n");
    site.write("broken.toml", &text);
    assert_eq!(probe(&["livez"], "").await.0, 0);

    run.signal(Signal::TERM);
    run.ended().await;
    let (code, _, err) = probe(&[], &address).await;
    assert_eq!(code, 1);
    assert!(err.starts_with(&format!("no worker answers at {address}: ")), "{err}");
    let (code, _, err) = probe(&[], "off").await;
    assert!(code == 1 && err.contains("cannot be asked"), "{err}");
}

#[tokio::test]
async fn a_probe_does_not_wait_for_ever() {
    let site = Site::new("").await;
    // It takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let output = site.command(&["--probe", "--listen", &address]).output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("no worker answers at 127.0.0.1:"), "{text}");
}

#[tokio::test]
async fn a_stuck_scraper_does_not_keep_others_from_their_answer() {
    let site = Site::with("exec = [\"true\"]").await;
    let run = site.run().await;
    let address = run.address().await;
    let stuck: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    run.says("/livez", 200, "alive").await;
    drop(stuck);
    run.drain().await;
}

/// Every notice up to one that `last` accepts.
async fn notices(socket: &tokio::net::UnixDatagram, last: impl Fn(&str) -> bool) -> Vec<String> {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    let read = async {
        loop {
            let length = socket.recv(&mut buffer).await.unwrap();
            let notice = String::from_utf8(buffer[..length].to_vec()).unwrap();
            seen.push(notice.clone());
            if last(&notice) {
                break;
            }
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(60), read).await;
    assert!(read.is_ok(), "{seen:?}");
    seen
}

#[tokio::test]
async fn the_service_manager_is_told() {
    let site = waiting().await;
    let socket = UnixDatagram::bind(site.file("notify")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UnixDatagram::from_std(socket).unwrap();
    let mut command = site.command(&["--listen", "off"]);
    command.env("NOTIFY_SOCKET", site.file("notify")).env("WATCHDOG_USEC", "1000000");
    let run = Run::start(command);
    let seen = notices(&socket, |notice| notice == "WATCHDOG=1").await;
    let seen = if seen.iter().any(|notice| notice == "READY=1") {
        seen
    } else {
        notices(&socket, |notice| notice == "READY=1").await
    };
    assert!(seen.iter().any(|notice| notice == "READY=1"), "{seen:?}");
    notices(&socket, |notice| notice == "STATUS=consuming 1 of 1 queue" || notice == "WATCHDOG=1")
        .await;
    site.publish(json!({})).await;
    site.appeared("begun").await;
    run.signal(Signal::TERM);
    notices(&socket, |notice| notice == "STOPPING=1").await;
    notices(&socket, |notice| notice == "STATUS=draining, running jobs: 1").await;
    notices(&socket, |notice| notice == "WATCHDOG=1").await;
    site.write("go", "");
    let (status, summary) = run.ended().await;
    assert_eq!(status.code(), Some(0), "{summary}");
}

#[tokio::test]
async fn an_abstract_notify_socket_will_do_and_one_that_is_not_there_does_no_harm() {
    use std::os::linux::net::SocketAddrExt;
    let site = Site::with("exec = [\"true\"]").await;
    let name = format!("forebay-{}", site.broker.namespace());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UnixDatagram::from_std(socket).unwrap();
    let mut command = site.command(&[]);
    command.env("NOTIFY_SOCKET", format!("@{name}"));
    let run = Run::start(command);
    notices(&socket, |notice| notice == "READY=1").await;
    run.drain().await;
    notices(&socket, |notice| notice == "STOPPING=1").await;

    let mut command = site.command(&[]);
    command.env("NOTIFY_SOCKET", site.file("nobody"));
    let run = Run::start(command);
    run.logged("it consumes", |line| line["message"] == "consuming").await;
    run.drain().await;
}

const PAGE: &str = include_str!("../../../docs/operation.md");

const CRATES: [&str; 3] = ["forebay_run", "forebay_worker", "forebay_handlers"];

/// Names of metrics in the table of the documentation: the first cell of its rows.
fn documented() -> BTreeSet<String> {
    let cells = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let names = cells.map(|cell| cell.split('{').next().unwrap_or_default());
    let ours = |name: &&str| name.starts_with("forebay_") || name.starts_with("process_");
    names.filter(ours).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_one_is_there() {
    // `cat` is never ready, and ends by itself.
    let more = "[functions.\"stays.on\"]\nserve = [\"cat\"]\n\
                [functions.\"row.insert\"]\nexec = [\"true\"]\nbatch = { size = 2 }";
    let site = Site::with(&format!("{OBEDIENT}\n{more}")).await;
    let run = site.run().await;
    for payload in ["good", "bad"] {
        site.publish(json!(payload)).await;
    }
    let options = forebay_producer::PublishOptions::new();
    site.producer.publish_raw("row.insert", "{}", options).await.unwrap();
    let mut scraped = BTreeSet::new();
    let complete = async || {
        let scrape = run.page("/metrics").await.1;
        let typed = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        scraped = typed.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
        let helps = scrape.lines().filter(|line| line.starts_with("# HELP ")).count();
        assert_eq!(helps, scraped.len(), "each has its sentence\n{scrape}");
        documented().is_subset(&scraped)
    };
    eventually("everything documented is scraped", complete).await;
    assert_eq!(documented(), scraped);

    // Rules and examples, too, name what there is.
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let names = PAGE.split(word).filter(|name| name.starts_with("forebay_"));
    for name in names.filter(|name| !CRATES.contains(name)) {
        let bare = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        assert!(
            scraped.contains(name) || bare.is_some_and(|bare| scraped.contains(bare)),
            "{name}"
        );
    }
}
