//! What comes before the first job: `--check`, faults, a broker that refuses.

use forebay_producer::PublishOptions;
use rustix::process::Signal;

use crate::support::{Run, Site};

#[tokio::test]
async fn a_check_prints_what_would_run() {
    let site = Site::new(
        r#"
[queues.mail]
concurrency = 8
rate = 5

[functions."mail.send"]
exec = ["true", "--password", "hush"]
queue = "mail"
timeout = "30s"
retry = { max_attempts = 3 }

[queues.rows]
[functions."row.insert"]
exec = ["true"]
queue = "rows"
batch = { size = 40 }

[functions."invoice.push"]
http = "http://u:hush@localhost/push?token=hush"
"#,
    )
    .await;
    let output = site.command(&["--check"]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let has = |words: &[&str]| {
        text.lines().any(|line| {
            let mut cells = line.split_whitespace();
            words.iter().all(|word| cells.any(|cell| cell == *word))
        })
    };
    assert!(text.contains("forebay.toml is fine: broker "), "{text}");
    assert!(text.contains(site.broker.namespace()), "{text}");
    let usual = (4 * std::thread::available_parallelism().unwrap().get()).to_string();
    assert!(has(&["mail", "quorum", "8", "16", "5/s", "-"]), "{text}");
    assert!(has(&["default", "quorum", &usual]), "{text}");
    assert!(has(&["mail.send", "mail", "exec", "true", "30s", "3", "8"]), "{text}");
    assert!(
        has(&["invoice.push", "default", "POST", "http://localhost/push", "5m", "5", &usual]),
        "{text}"
    );
    assert!(
        has(&["row.insert", "rows", "exec", "true", "5m", "5", "1", "40", "within", "200ms"]),
        "{text}"
    );
    assert!(!text.contains("hush"), "{text}");
}

#[tokio::test]
async fn everything_wrong_is_listed_and_the_exit_code_is_2() {
    let text =
        "[functions.\"a.b\"]\nexec = [\"no-such-program-1\"]\ntimout = \"1s\"\nqueue = \"mail\"\n";
    let site = Site::new(text).await;
    for arguments in [&["--check"][..], &[]] {
        let output = site.command(arguments).output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines[0].starts_with("forebay.toml:1: function `a.b`: program `no-such-program-1`")
        );
        assert!(lines[1].starts_with("forebay.toml:3:1: unknown key `timout`"), "{text}");
        assert!(lines[2].ends_with("add the line [queues.mail]"), "{text}");
        assert_eq!(lines[3], "3 faults found");
    }
}

#[tokio::test]
async fn wrong_flags_and_a_missing_manifest_are_usage_errors() {
    let site = Site::with("exec = [\"true\"]").await;
    for (arguments, words) in [
        (
            &["--config", "missing.toml"][..],
            "missing.toml: the manifest cannot be read: No such file",
        ),
        (&["--queue", "mail"], "there is no queue `mail` to consume; its queues are: default"),
        (&["--url", "http://u:hush@a"], "it does not begin with amqp://"),
        (&["--namespace", "A B"], "namespace `A B` is not allowed"),
        (&["--log", "=nonsense="], "is no filter"),
        (&["--exit-after", "soon"], "invalid value 'soon'"),
        (&["--no-such-flag"], "unexpected argument"),
    ] {
        let output = site.command(arguments).output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?}: {text}");
        assert!(!text.contains("hush"), "{text}");
    }
}

#[tokio::test]
async fn a_wrong_password_ends_it_with_exit_code_3() {
    let site = Site::with("exec = [\"true\"]").await;
    let url = format!("amqp://guest:wrong@{}/%2f", site.broker.address());
    let mut command = site.command(&[]);
    command.env("AMQP_URL", url);
    let run = Run::start(command);
    let refused = run.logged("it ended", |line| line["message"] == "worker ended");
    let refused = refused.await["error"].to_string();
    assert!(refused.contains("refuses user `guest`") && !refused.contains("wrong"), "{refused}");
    let (status, summary) = run.ended().await;
    assert_eq!(status.code(), Some(3));
    assert!(summary.starts_with("done 0, "), "{summary}");
}

#[tokio::test]
async fn a_worker_that_waits_for_its_broker_can_be_ended() {
    let site = Site::with("exec = [\"true\"]").await;
    let mut command = site.command(&[]);
    command.env("AMQP_URL", "amqp://127.0.0.1:1");
    let run = Run::start(command);
    run.logged("it waits", |line| line["message"] == "not connected").await;
    run.signal(Signal::INT);
    assert_eq!(run.ended().await.0.code(), Some(0));
}

#[tokio::test]
async fn only_the_queue_asked_for_is_consumed_with_every_function() {
    let site = Site::new(
        r#"
[queues.a]
[queues.b]
[functions."test.run"]
exec = ["/bin/sh", "-c", "cat >> ran; echo >> ran"]
queue = "a"
"#,
    )
    .await;
    for queue in ["a", "b"] {
        site.broker.owns(queue);
        let options = PublishOptions::new().queue(queue);
        site.producer.publish_raw("test.run", format!("\"{queue}\""), options).await.unwrap();
    }
    let run = Run::start(site.command(&["--queue", "b"]));
    assert_eq!(site.appeared("ran").await, "\"b\"\n");
    assert!(run.drain().await.starts_with("done 1, "));
    assert_eq!(site.appeared("ran").await, "\"b\"\n");
}
