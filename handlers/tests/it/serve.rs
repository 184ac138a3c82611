//! Long-lived programs as functions, with the helper modules of `examples/`, and what goes wrong
//! with such programs.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use forebay_producer::{Job, PublishOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{KIND, Site, alive, eventually, last_words};

const PYTHON: &str = include_str!("../../examples/python/forebay_serve.py");
const NODE: &str = include_str!("../../examples/node/forebay-serve.mjs");

/// Retries at once, so that tests need not wait.
const AT_ONCE: &str = "retry = { base = \"100ms\", factor = 1, jitter = false }";

/// A site whose `test.run` is this Python function, with these lines in the manifest.
async fn python(lines: &str, function: &str) -> Site {
    let site =
        Site::with(&format!("serve = [\"python3\", \"worker.py\"]\n{AT_ONCE}\n{lines}")).await;
    write_python(&site, function);
    site
}

fn write_python(site: &Site, function: &str) {
    site.write("forebay_serve.py", PYTHON);
    site.write("worker.py", &python_worker(function));
}

fn python_worker(function: &str) -> String {
    format!(
        "import os, signal, sys, time\n\
         from forebay_serve import Defer, Reject, RetryAfter, job, serve\n\
         def note(name, text):\n    \
             with open(name, 'a') as file: file.write(f'{{text}}\\n')\n\
         @job('{KIND}')\n{function}\nserve()\nnote('bye', os.getpid())\n"
    )
}

/// The lines of a file, waiting until there are so many.
async fn lines(site: &Site, name: &str, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    eventually(&format!("{name} has {count} lines"), async || {
        let text = fs::read_to_string(site.file(name)).unwrap_or_default();
        lines = text.lines().map(str::to_owned).collect();
        lines.len() >= count
    })
    .await;
    lines
}

fn says<'a>(message: &'a str, error: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |line| {
        line["message"].as_str().is_some_and(|text| text.starts_with(message))
            && line["error"].as_str().unwrap_or_default().contains(error)
    }
}

fn kill(pid: &str) {
    let pid = pid.trim().parse().ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

#[tokio::test]
async fn one_process_does_many_jobs() {
    let site = python("", "def run(n, cx):\n    note('pids', os.getpid())\n    return 2 * n").await;
    let run = site.run().await;
    for n in 0..200 {
        site.publish(json!(n)).await;
    }
    assert_eq!(site.call(json!(21)).await.unwrap(), json!(42));
    let pids: BTreeSet<_> = lines(&site, "pids", 201).await.into_iter().collect();
    assert_eq!(pids.len(), 1);
    assert!(run.drain().await.starts_with("done 201, retried 0, dead 0, "));
    assert_eq!(lines(&site, "bye", 1).await, Vec::from_iter(pids));
}

#[tokio::test]
async fn a_program_is_told_about_its_job() {
    let site = python(
        "timeout = \"50s\"",
        "def run(payload, cx):\n    return [cx.id, cx.kind, cx.queue, cx.attempt, \
         cx.redelivered, cx.crashes, 40 < cx.remaining() <= 50, payload, \
         sorted(name for name in os.environ if name.startswith('FOREBAY_'))]",
    )
    .await;
    let run = site.run().await;
    let told = site.call(json!({ "n": 1 })).await.unwrap();
    let expected = json!([
        told[0], KIND, "default", 1, false, 0, true, { "n": 1 },
        ["FOREBAY_SERVE_JOBS", "FOREBAY_SERVE_PROTOCOL"]
    ]);
    assert_eq!(told, expected);
    run.drain().await;
}

#[tokio::test]
async fn processes_work_side_by_side() {
    // Each ends only when all three have begun.
    let site = python(
        "processes = 3",
        "def run(n, cx):\n    note(f'begun-{n}', os.getpid())\n    \
             while not all(os.path.exists(f'begun-{n}') for n in range(3)): time.sleep(0.01)",
    )
    .await;
    let run = site.run().await;
    for n in 0..3 {
        site.publish(json!(n)).await;
    }
    let mut pids = BTreeSet::new();
    for n in 0..3 {
        pids.insert(site.appeared(&format!("begun-{n}")).await);
    }
    assert_eq!(pids.len(), 3);
    assert!(run.drain().await.starts_with("done 3, "));
}

#[tokio::test]
async fn what_a_function_raises_decides_what_becomes_of_the_job() {
    let site = python(
        "",
        "def run(what, cx):\n    \
             note('runs', f'{what} {cx.attempt}')\n    \
             if what == 'reject': raise Reject('no such page')\n    \
             if what == 'wait' and cx.attempt == 1: raise RetryAfter(0.2, 'busy')\n    \
             if what == 'fail' and cx.attempt == 1: raise ValueError('broken')\n    \
             if what == 'defer' and not os.path.exists('later'):\n        \
                 note('later', '')\n        \
                 raise Defer(0.2, 'not now')\n    \
             if what == 'nan': return float('nan')",
    )
    .await;
    let run = site.run().await;
    for what in ["wait", "fail", "defer"] {
        assert_eq!(site.call(json!(what)).await.unwrap(), Value::Null);
    }
    let runs = lines(&site, "runs", 6).await;
    assert_eq!(runs, ["wait 1", "wait 2", "fail 1", "fail 2", "defer 1", "defer 1"]);
    run.logged("why", says("job will be retried", "ValueError: broken")).await;
    run.logged("its traceback", |line| {
        line["message"] == "printed" && line["text"] == "ValueError: broken"
    })
    .await;
    site.publish(json!("reject")).await;
    let letter = site.dead().await;
    assert_eq!(letter.reason, "rejected");
    assert_eq!(last_words(&letter), "Reject: no such page");
    site.publish(json!("nan")).await;
    run.logged("what is no JSON", says("job will be retried", "ValueError: Out of range")).await;
    run.drain().await;
}

#[tokio::test]
async fn a_function_that_exits_or_is_cancelled_is_answered_as_failed() {
    let site = python(
        "",
        "def run(what, cx):\n    \
             import asyncio\n    \
             async def cancelled(): raise asyncio.CancelledError('enough')\n    \
             note('pids', os.getpid())\n    \
             if cx.attempt > 1: return what\n    \
             if what == 'exit': sys.exit(3)\n    \
             return cancelled()",
    )
    .await;
    let run = site.run().await;
    for (what, why) in [("exit", "SystemExit: 3"), ("cancel", "CancelledError: enough")] {
        assert_eq!(site.call(json!(what)).await.unwrap(), json!(what));
        run.logged("why", says("job will be retried", why)).await;
    }
    let pids = lines(&site, "pids", 4).await;
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    run.drain().await;
}

#[tokio::test]
async fn what_is_printed_is_logged_and_progress_is_listed() {
    let site = python(
        "",
        "def run(payload, cx):\n    \
             print('{\"run\": \"1\", \"ok\": 1}')\n    \
             cx.progress({'pages': 1})\n    \
             while not os.path.exists('go'): time.sleep(0.01)",
    )
    .await;
    let run = site.run().await;
    let id = site.publish(json!({})).await;
    run.logged("what it printed", |line| {
        line["message"] == "printed" && line["stream"] == "stdout" && line["server"] == KIND
    })
    .await;
    eventually("progress and server are listed", async || {
        run.signal(Signal::USR1);
        let log = run.log();
        let job = log.iter().any(|line| {
            line["message"] == "running"
                && line["job.id"] == *id
                && line["progress"] == "{\"pages\":1}"
        });
        let server = log
            .iter()
            .any(|line| line["message"] == "server" && line["ready"] == 1 && line["running"] == 1);
        job && server
    })
    .await;
    site.write("go", "");
    assert!(run.drain().await.starts_with("done 1, "));
}

#[tokio::test]
async fn large_payloads_and_those_on_many_lines_arrive_whole() {
    let site = python(
        "",
        "def run(payload, cx):\n    \
             import json\n    \
             if isinstance(payload, dict): note('payload', json.dumps(payload))\n    \
             return payload",
    )
    .await;
    let run = site.run().await;
    // Everything that somebody might take for the end of a line.
    let odd = json!({ "a": "x\n\r\u{85}\u{2028}\u{2029}é\"\\", "b": [1, 2] });
    let text = serde_json::to_string_pretty(&odd).unwrap();
    site.producer.publish_raw(KIND, text, PublishOptions::new()).await.unwrap();
    let arrived = site.appeared("payload").await;
    assert_eq!(serde_json::from_str::<Value>(&arrived).unwrap(), odd);
    let large = json!("é".repeat(7 << 20));
    assert_eq!(site.call(large.clone()).await.unwrap(), large);
    let huge = serde_json::from_str::<Value>("123456789012345678901234567890").unwrap();
    assert_eq!(site.call(huge.clone()).await.unwrap(), huge);
    run.drain().await;
}

#[tokio::test]
async fn a_result_that_is_too_large_makes_a_dead_letter_and_ends_no_process() {
    let site = python("", "def run(n, cx):\n    return 'x' * n").await;
    let run = site.run().await;
    site.publish(json!(17 << 20)).await;
    assert!(last_words(&site.dead().await).contains("is larger than 16 MiB"));
    assert_eq!(site.call(json!(1)).await.unwrap(), json!("x"));
    run.drain().await;
    assert_eq!(lines(&site, "bye", 1).await.len(), 1);
}

#[tokio::test]
async fn a_process_that_dies_fails_its_job_and_is_replaced() {
    let site = python(
        "",
        "def run(payload, cx):\n    \
             if cx.attempt == 1:\n        \
                 print('out of ink', file=sys.stderr, flush=True)\n        \
                 os.kill(os.getpid(), signal.SIGKILL)\n    \
             return 'done'",
    )
    .await;
    let run = site.run().await;
    assert_eq!(site.call(json!({})).await.unwrap(), json!("done"));
    let why =
        "was killed by signal 9: by hand, or for want of memory, while it ran this job: out of ink";
    run.logged("the failure", says("job will be retried", why)).await;
    run.logged("the end", says("child process failed", "out of ink")).await;
    assert!(run.drain().await.starts_with("done 1, retried 1, "));
}

#[tokio::test]
async fn nonsense_on_descriptor_3_ends_the_process() {
    for (write, words) in [
        ("os.write(3, b'hello\\n')", "(expected value at line 1 column 1): hello"),
        ("os.write(3, b'{\"run\": \"\\xff\"}\\n')", "(it is not UTF-8)"),
        ("os.write(3, b'[' * (17 << 20))", "wrote a line of more than 16 MiB on descriptor 3: [[["),
        ("os.close(3)", "closed descriptor 3"),
    ] {
        let site = python(
            "",
            &format!(
                "def run(payload, cx):\n    \
                     if cx.attempt == 1:\n        {write}\n        time.sleep(600)\n    \
                     return 'done'"
            ),
        )
        .await;
        let run = site.run().await;
        assert_eq!(site.call(json!({})).await.unwrap(), json!("done"), "{write}");
        run.logged(words, says("job will be retried", words)).await;
        assert!(run.drain().await.starts_with("done 1, retried 1, "), "{write}");
    }
}

#[tokio::test]
async fn answers_nobody_waits_for_are_ignored() {
    let site = python(
        "",
        "def run(payload, cx):\n    \
             os.write(3, b'{\"run\": \"987654321\", \"ok\": 1}\\n')\n    \
             os.write(3, b'{\"type\": \"unheard of\"}\\n')\n    \
             os.write(3, b'{\"run\": \"%s\", \"ok\": 1}\\n' % cx.run.encode())\n    \
             return 2",
    )
    .await;
    let run = site.run().await;
    assert_eq!(site.call(json!({})).await.unwrap(), json!(1));
    assert_eq!(site.call(json!({})).await.unwrap(), json!(1));
    let answered = says("child process answered a run that it does not have", "");
    let line = run.logged("it is mentioned", answered).await;
    // A result is nobody's business but the caller's.
    assert_eq!((&line["run"], &line["length"]), (&json!("987654321"), &json!(30)), "{line}");
    assert_eq!(line["line"], Value::Null, "{line}");
    run.drain().await;
    assert_eq!(lines(&site, "bye", 1).await.len(), 1);
}

#[tokio::test]
async fn a_run_that_heeds_its_cancellation_costs_no_process() {
    let site = python(
        "timeout = \"1s\"",
        "def run(payload, cx):\n    \
             note('pids', os.getpid())\n    \
             if cx.attempt == 1: cx.cancelled.wait()\n    \
             return 'done'",
    )
    .await;
    let run = site.run().await;
    assert_eq!(site.call(json!({})).await.unwrap(), json!("done"));
    let pids = lines(&site, "pids", 2).await;
    assert_eq!(pids[0], pids[1]);
    run.drain().await;
}

#[tokio::test]
async fn a_run_that_hangs_costs_its_process_but_not_the_attempts_of_its_neighbours() {
    let manifest = format!(
        "[servers.both]\nserve = [\"python3\", \"worker.py\"]\njobs_per_process = 2\n\
         [functions.\"{KIND}\"]\nserver = \"both\"\ntimeout = \"1s\"\n{AT_ONCE}\n\
         [functions.\"other.run\"]\nserver = \"both\"\ntimeout = \"1m\"\n"
    );
    let site = Site::new(&manifest).await;
    let hangs = "def run(payload, cx):\n    \
                     note('hangs', cx.attempt)\n    \
                     if cx.attempt == 1: time.sleep(600)\n    \
                     return 'done'\n\
                 @job('other.run')\n\
                 def other(payload, cx):\n    \
                     note('others', f'{cx.attempt} {os.getpid()}')\n    \
                     while not os.path.exists('go'): time.sleep(0.01)";
    write_python(&site, hangs);
    let run = site.run().await;
    let options = PublishOptions::new();
    site.producer.publish_raw("other.run", "{}", options).await.unwrap();
    site.appeared("others").await;
    assert_eq!(site.call(json!({})).await.unwrap(), json!("done"));
    let why = "a run went on for 5 s after it was cancelled";
    run.logged("the end", says("child process failed", why)).await;
    let others = lines(&site, "others", 2).await;
    let attempts: Vec<_> = others.iter().map(|line| line.split_once(' ').unwrap().0).collect();
    assert_eq!(attempts, ["1", "1"]);
    site.write("go", "");
    let summary = run.drain().await;
    assert!(summary.starts_with("done 2, retried 1, dead 0, "), "{summary}");
}

#[tokio::test]
async fn a_program_that_does_not_read_is_ended_after_the_timeout_of_its_job() {
    let site =
        Site::with(&format!("serve = [\"sh\", \"deaf.sh\"]\n{AT_ONCE}\ntimeout = \"1s\"")).await;
    site.write("deaf.sh", "echo $$ >> pids; echo '{\"type\": \"ready\"}' >&3; exec sleep 600\n");
    let run = site.run().await;
    site.publish(json!("x".repeat(1 << 20))).await;
    let pids = lines(&site, "pids", 2).await;
    assert!(!alive(&pids[0]));
    run.logged("the end", says("child process failed", "after it was cancelled")).await;
    run.signal(Signal::KILL);
}

#[tokio::test]
async fn a_program_that_is_never_ready_is_started_again_and_named() {
    for (command, words) in [
        ("[\"sleep\", \"600\"]", "did not say that it is ready within 300ms"),
        ("[\"true\"]", "ended with exit code 0, before it was ready"),
        (
            "[\"sh\", \"-c\", \"echo no ink >&2; exit 3\"]",
            "exit code 3, before it was ready: no ink",
        ),
        (
            "[\"sh\", \"-c\", 'echo \"{\\\"type\\\":\\\"ready\\\",\\\"protocol\\\":2}\" >&3; sleep 600']",
            "speaks version 2 of the protocol; this worker speaks 1",
        ),
    ] {
        let site =
            Site::with(&format!("serve = {command}\nstart_timeout = \"300ms\"\ntimeout = \"2s\""))
                .await;
        let run = site.run().await;
        site.publish(json!({})).await;
        run.logged("that it failed twice", |line| {
            says("child process failed", words)(line) && line["failures"] == 2
        })
        .await;
        let why = format!("no process of server `{KIND}` took the job within");
        let put_off = run.logged("the job waits", says("job put off", &why)).await;
        assert!(put_off["error"].as_str().unwrap().contains(words), "{put_off}");
        assert!(
            run.drain().await.starts_with("done 0, retried 0, dead 0, put off 1, "),
            "{command}"
        );
    }
}

#[tokio::test]
async fn jobs_wait_until_a_broken_program_is_mended_and_lose_no_attempt() {
    let site = python("", "def run(payload, cx):\n    return cx.attempt").await;
    let good = fs::read_to_string(site.file("worker.py")).unwrap();
    site.write("worker.py", "import no_such_module");
    let run = site.run().await;
    let why = "ModuleNotFoundError: No module named 'no_such_module'";
    run.logged("what is wrong", says("child process failed", why)).await;
    let ask = site.call(json!({}));
    let mend = async {
        run.logged("again", |line| line["failures"] == 3).await;
        site.write("worker.py", &good);
    };
    let (answer, ()) = tokio::join!(ask, mend);
    assert_eq!(answer.unwrap(), json!(1));
    run.drain().await;
}

#[tokio::test]
async fn a_process_is_replaced_after_its_jobs() {
    let site = python("max_jobs = 10", "def run(n, cx):\n    note('pids', os.getpid())").await;
    let run = site.run().await;
    for n in 0..50 {
        site.publish(json!(n)).await;
    }
    let pids = lines(&site, "pids", 50).await;
    for pid in &pids {
        assert_eq!(pids.iter().filter(|other| *other == pid).count(), 10);
    }
    assert!(run.drain().await.starts_with("done 50, retried 0, dead 0, put off 0, "));
    // And the one that waited for the next job, unless it had not got so far.
    lines(&site, "bye", 5).await;
}

#[tokio::test]
async fn a_flood_of_output_is_bounded() {
    let site = python(
        "",
        "def run(payload, cx):\n    \
             for n in range(200_000): print('flood', n, file=sys.stderr)\n    \
             sys.stderr.write('x' * 1_000_000 + '\\n')\n    \
             return 'done'",
    )
    .await;
    let run = site.run().await;
    assert_eq!(site.call(json!({})).await.unwrap(), json!("done"));
    let too_much = "printed too much: lines were left out";
    run.logged("that lines are missing", |line| line["message"] == too_much).await;
    assert!(run.log().len() < 100_000);
    run.drain().await;
}

const WAITING: &str = "def run(payload, cx):\n    \
                           note('begun', os.getpid())\n    \
                           while not os.path.exists('go'): time.sleep(0.01)";

#[tokio::test]
async fn term_lets_a_running_job_finish_and_its_process_end_by_itself() {
    let site = python("", WAITING).await;
    let run = site.run().await;
    site.publish(json!({})).await;
    let pid = site.appeared("begun").await;
    run.signal(Signal::TERM);
    run.logged("it drains", says("draining", "")).await;
    site.write("go", "");
    let (status, summary) = run.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(summary.starts_with("done 1, retried 0, dead 0, "), "{summary}");
    assert_eq!(site.appeared("bye").await, pid);
    assert!(!alive(&pid));
}

#[tokio::test]
async fn another_signal_ends_a_program_that_does_not_want_to_end() {
    let site = Site::with("serve = [\"sh\", \"stubborn.sh\"]").await;
    let stubborn = "trap '' TERM; echo '{\"type\": \"ready\"}' >&3; echo $$ > pid.new\n\
                    mv pid.new pid; while :; do sleep 0.05; done\n";
    site.write("stubborn.sh", stubborn);
    let run = site.run().await;
    let pid = site.appeared("pid").await;
    run.signal(Signal::TERM);
    run.logged("the worker has ended", says("drained", "")).await;
    assert_eq!(run.page("/livez").await.0, 200);
    run.signal(Signal::TERM);
    run.logged("it obeys", says("ending at once; programs are killed", "")).await;
    let (status, summary) = run.ended().await;
    assert_eq!(status.code(), Some(0), "{summary}");
    eventually("the program is gone", async || !alive(&pid)).await;
}

#[tokio::test]
async fn processes_die_with_the_worker() {
    for signals in [&[Signal::KILL][..], &[Signal::TERM, Signal::INT]] {
        let site = python("processes = 2", WAITING).await;
        let run = site.run().await;
        for n in 0..2 {
            site.publish(json!(n)).await;
        }
        let pids = lines(&site, "begun", 2).await;
        for signal in signals {
            run.signal(*signal);
            if *signal == Signal::TERM {
                run.logged("it drains", says("draining", "")).await;
            }
        }
        run.ended().await;
        for pid in &pids {
            eventually("the process is gone", async || !alive(pid)).await;
        }
    }
}

#[tokio::test]
async fn a_process_killed_under_load_loses_nothing() {
    let site = python(
        "processes = 2\njobs_per_process = 4",
        "def run(n, cx):\n    \
             time.sleep(0.01)\n    \
             note('done', f'{n} {os.getpid()}')",
    )
    .await;
    let run = site.run().await;
    let publishing = async {
        for n in 0..400 {
            site.publish(json!(n)).await;
        }
    };
    let killing = async {
        let mut killed = BTreeSet::new();
        for mark in [50, 150, 250] {
            let mut victim = String::new();
            eventually("one that lives has done something", async || {
                let done = lines(&site, "done", mark).await;
                victim = done.last().unwrap().split_once(' ').unwrap().1.to_owned();
                !killed.contains(&victim)
            })
            .await;
            kill(&victim);
            killed.insert(victim);
        }
    };
    tokio::join!(publishing, killing);
    eventually("all are done", async || {
        let text = fs::read_to_string(site.file("done")).unwrap();
        let numbers = text.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned()));
        numbers.collect::<BTreeSet<_>>().len() == 400
    })
    .await;
    let summary = run.drain().await;
    assert!(summary.starts_with("done 400, ") && summary.contains("dead 0, "), "{summary}");
}

#[tokio::test]
async fn node_runs_many_jobs_at_once_in_one_process() {
    let site = Site::new(&format!(
        "[queues.default]\nconcurrency = 32\n[functions.\"{KIND}\"]\n\
         serve = [\"node\", \"worker.mjs\"]\njobs_per_process = 32\n{AT_ONCE}\n"
    ))
    .await;
    site.write("forebay-serve.mjs", NODE);
    // Each ends only when 32 run at once.
    site.write(
        "worker.mjs",
        &format!(
            "import {{ job, serve, Reject, Defer }} from './forebay-serve.mjs';\n\
             import {{ appendFileSync }} from 'node:fs';\n\
             let arrived = 0, open;\n\
             const all = new Promise((resolve) => (open = resolve));\n\
             job('{KIND}', async (what, cx) => {{\n\
               if (what === 'reject') throw new Reject('no such page');\n\
               if (what === 'fail' && cx.attempt === 1) throw new TypeError('broken');\n\
               if (typeof what === 'string') return {{ what, attempt: cx.attempt }};\n\
               cx.progress(what);\n\
               if (++arrived === 32) open();\n\
               await all;\n\
               console.log('printed {{\"run\": \"1\"}}');\n\
               appendFileSync('done', `${{what}} ${{process.pid}}\\n`);\n\
             }});\n\
             serve();\n\
             process.on('exit', () => appendFileSync('bye', 'bye\\n'));\n"
        ),
    );
    let run = site.run().await;
    for n in 0..64 {
        site.publish(json!(n)).await;
    }
    let done = lines(&site, "done", 64).await;
    let pids: BTreeSet<_> = done.iter().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(pids.len(), 1, "{done:?}");
    let odd = json!("\u{2028}é\n");
    assert_eq!(site.call(odd.clone()).await.unwrap(), json!({ "what": odd, "attempt": 1 }));
    assert_eq!(site.call(json!("fail")).await.unwrap(), json!({ "what": "fail", "attempt": 2 }));
    site.publish(json!("reject")).await;
    assert_eq!(last_words(&site.dead().await), "Reject: no such page");
    assert!(run.drain().await.starts_with("done 66, retried 1, dead 1, "));
    assert_eq!(site.appeared("bye").await, "bye\n");
}

#[tokio::test]
async fn the_documented_bash_program_runs() {
    let doc = include_str!("../../../docs/serve.md");
    let (_, rest) = doc.split_once("```bash\n").unwrap();
    let (program, _) = rest.split_once("```\n").unwrap();
    let site = Site::with("serve = [\"bash\", \"worker.sh\"]").await;
    site.write("worker.sh", program);
    let run = site.run().await;
    for text in ["one", "two"] {
        let sum = hex::encode(Sha256::digest(format!("\"{text}\"\n")));
        assert_eq!(site.call(json!(text)).await.unwrap(), json!(sum));
    }
    run.drain().await;
}

#[derive(Debug, Serialize, Deserialize)]
struct Render {
    lines: Vec<Value>,
}

impl Job for Render {
    const KIND: &'static str = "invoice.render";
}

#[derive(Debug, Serialize, Deserialize)]
struct Quote {
    sku: String,
    count: u32,
}

impl Job for Quote {
    const KIND: &'static str = "price.quote";
}

#[tokio::test]
async fn the_examples_run_as_they_stand() {
    let patience = Duration::from_secs(60);
    let site = Site::new(include_str!("../../examples/python/forebay.toml")).await;
    site.broker.owns("books");
    site.write("forebay_serve.py", PYTHON);
    site.write("worker.py", include_str!("../../examples/python/worker.py"));
    let run = site.run().await;
    let job = Render { lines: vec![json!({ "price": 2 }), json!({ "price": 3.5 })] };
    let total: Value = site.producer.call(&job, patience).await.unwrap();
    assert_eq!(total, json!({ "total": 5.5 }));
    let options = || PublishOptions::new().queue("books");
    for payload in [r#"{"id": 7}"#, "{}"] {
        site.producer.publish_raw("invoice.book", payload, options()).await.unwrap();
    }
    run.logged("the bad one", |line| line["message"] == "job is a dead letter now").await;
    let summary = run.drain().await;
    assert!(summary.starts_with("done 2, retried 0, dead 1, "), "{summary}");

    let site = Site::new(include_str!("../../examples/node/forebay.toml")).await;
    site.broker.owns("stock");
    site.write("forebay-serve.mjs", NODE);
    site.write("worker.mjs", include_str!("../../examples/node/worker.mjs"));
    let run = site.run().await;
    let job = Quote { sku: "bolt".to_owned(), count: 3 };
    let price: Value = site.producer.call(&job, patience).await.unwrap();
    assert_eq!(price, json!({ "price": 15 }));
    let options = || PublishOptions::new().queue("stock");
    for payload in [r#"{"sku": "nut"}"#, r#"{"sku": "cog"}"#] {
        site.producer.publish_raw("stock.count", payload, options()).await.unwrap();
    }
    run.logged("the bad one", |line| line["message"] == "job is a dead letter now").await;
    let summary = run.drain().await;
    assert!(summary.starts_with("done 2, retried 0, dead 1, "), "{summary}");
}
