//! Programs as functions.

use std::fs;

use serde_json::json;

use crate::support::{Site, alive, eventually, last_words};

#[tokio::test]
async fn a_program_s_json_is_the_result_of_the_job() {
    let site = Site::with(r#"exec = ["python3", "double.py"]"#).await;
    site.write("double.py", "import json, sys\nprint(json.dumps(2 * json.load(sys.stdin)['n']))\n");
    let run = site.run().await;
    assert_eq!(site.call(json!({ "n": 21 })).await.unwrap(), json!(42));
    assert!(run.drain().await.starts_with("done 1, "));
}

#[tokio::test]
async fn a_program_that_fails_is_tried_again_and_told_so() {
    let site = Site::with(
        r#"exec = ["/bin/sh", "try.sh"]
retry = { max_attempts = 3, base = "100ms", jitter = false }"#,
    )
    .await;
    site.write(
        "try.sh",
        "echo $FOREBAY_JOB_ATTEMPT >> attempts\n[ $FOREBAY_JOB_ATTEMPT = 3 ] && echo done\n",
    );
    let run = site.run().await;
    assert_eq!(site.call(json!({})).await.unwrap(), json!("done"));
    assert_eq!(fs::read_to_string(site.file("attempts")).unwrap(), "1\n2\n3\n");
    assert!(run.drain().await.starts_with("done 1, retried 2, dead 0, "));
}

#[tokio::test]
async fn exit_code_65_makes_a_dead_letter_with_the_end_of_standard_error() {
    let site = Site::with(r#"exec = ["/bin/sh", "-c", "echo no such page >&2; exit 65"]"#).await;
    let run = site.run().await;
    site.publish(json!({})).await;
    let letter = site.dead().await;
    assert_eq!(letter.reason, "rejected");
    assert_eq!(last_words(&letter), "`/bin/sh` ended with exit code 65: no such page");
    run.drain().await;
}

#[tokio::test]
async fn a_program_without_attempts_left_makes_a_dead_letter() {
    let site = Site::with("exec = [\"/bin/sh\", \"-c\", \"exit 3\"]\nretry = \"never\"").await;
    let run = site.run().await;
    site.publish(json!({})).await;
    let letter = site.dead().await;
    assert_eq!(letter.envelope.failures.len(), 1);
    assert_eq!(last_words(&letter), "`/bin/sh` ended with exit code 3");
    run.drain().await;
}

#[tokio::test]
async fn a_program_that_is_too_slow_is_stopped_and_retried() {
    let site = Site::with(
        r#"exec = ["/bin/sh", "slow.sh"]
timeout = "1s"
retry = { base = "100ms", jitter = false }"#,
    )
    .await;
    site.write("slow.sh", "[ $FOREBAY_JOB_ATTEMPT = 2 ] && exit; echo $$ > pid; exec sleep 600\n");
    let run = site.run().await;
    site.call(json!({})).await.unwrap();
    let pid = site.appeared("pid").await;
    eventually("the slow one is gone", async || !alive(&pid)).await;
    run.drain().await;
}

#[tokio::test]
async fn hundreds_of_runs_leave_nothing_open() {
    let site = Site::with("exec = [\"cat\"]").await;
    let run = site.run().await;
    site.call(json!(0)).await.unwrap();
    let open = || fs::read_dir(format!("/proc/{}/fd", run.pid.as_raw_nonzero())).unwrap().count();
    let before = open();
    for n in 0..300 {
        site.publish(json!(n)).await;
    }
    // Jobs of one queue begin in order: when this one is done, few others still run.
    site.call(json!(301)).await.unwrap();
    eventually("everything is closed again", async || open() <= before + 2).await;
    assert!(run.drain().await.starts_with("done 302, "));
}
