//! `forebay.toml` as anybody may write it.

use std::fmt::Write;

use forebay_handlers::Manifest;

/// Longest that one fault may be, beside what it quotes of the file.
const LONGEST: usize = 1_000;

/// What manifests are made of; a byte stands for each, so that most of what comes is nearly right.
const WORDS: [&str; 72] = [
    "\n",
    "\n",
    "\n",
    "[broker]\n",
    "[worker]\n",
    "[queues.default]\n",
    "[queues.mail]\n",
    "[queues.\"No Queue\"]\n",
    "[functions.\"a.b\"]\n",
    "[functions.\"file.digest\"]\n",
    "[functions.\"email.send\"]\n",
    "[functions.\"image.thumbnail\"]\n",
    "[servers.one]\n",
    "[[queues]]\n",
    "url = \"amqp://u:hush@a,b:1/v\"\n",
    "url = \"amqp://u:hush\"\n",
    "url = \"amqp://u:hush\n",
    "namespace",
    "declare",
    "strict_topology",
    "payload_limit",
    "name",
    "grace",
    "consumer_timeout",
    "exit_after",
    "listen",
    "concurrency",
    "prefetch",
    "type",
    "default_kind",
    "rate",
    "exec",
    "serve",
    "server",
    "http",
    "use",
    "queue",
    "timeout",
    "retry",
    "env",
    "pass_env",
    "cwd",
    "processes",
    "jobs_per_process",
    "max_jobs",
    "headers",
    "secret_env",
    "roots",
    "retry.cap",
    " = ",
    " = ",
    " = ",
    "\"30s\"",
    "\"16MiB\"",
    "\"\"",
    "\"never\"",
    "[\"python3\", \"x.py\"]",
    "\"http://localhost/x\"",
    "\"file.digest\"",
    "{ base = \"1s\", factor = 2.0 }",
    "true",
    "0",
    "-1",
    "1e400",
    "99999999999999999999",
    "nan",
    "1979-05-27",
    "{",
    "[",
    "\"",
    "\u{feff}",
    "\u{e9}\u{0}",
];

#[test]
fn manifest() {
    forebay_producer::testing::fuzz("tests/fuzz/corpus/manifest", check_manifest);
}

pub(crate) fn check_manifest(input: &[u8]) {
    let mut text = String::new();
    for byte in input {
        match WORDS.get(usize::from(*byte)) {
            Some(word) => text.push_str(word),
            None => text.push(char::from(*byte & 0x7f)),
        }
    }
    check(&text);
    check(&String::from_utf8_lossy(input));
}

fn check(text: &str) {
    let lines = text.lines().count() + 1;
    match Manifest::parse(text, "forebay.toml") {
        Ok(manifest) => {
            // The word may have become part of anything else.
            let shown = format!("{:?}", manifest.broker);
            assert!(!shown.contains("hush"), "{text}\n{shown}");
        }
        Err(faults) => {
            let mut all = String::new();
            for fault in &faults.0 {
                assert!(fault.line.is_none_or(|line| (1..=lines).contains(&line)), "{fault}");
                let shown = fault.to_string();
                assert!(shown.len() <= LONGEST + text.len(), "{shown}");
                writeln!(all, "{shown}").expect("a text takes all");
            }
            let secret = |line: &str| line.contains("hush") && line.trim().starts_with("url =");
            let elsewhere = |line: &str| line.contains("hush") && !secret(line);
            assert!(!all.contains("hush") || text.lines().any(elsewhere), "{text}\n{all}");
        }
    }
}
