//! `forebay publish --spool` and `forebay spool`: what the broker cannot take now is kept, and sent
//! once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use forebay_producer::link::after;
use forebay_producer::link::connection::Link;
use forebay_producer::testing::{Broker, Meddle, Proxy, broker_of_its_own};
use forebay_producer::wire::envelope::Raw;
use forebay_producer::{Envelope, SigningKeys};
use lapin::options::BasicGetOptions;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::time;

use super::{Call, Ran, broker, ended, forebay, ready, somewhere};

/// Nobody listens there.
const NOWHERE: &str = "amqp://guest:hush@127.0.0.1:1";

/// A folder that a spool may be made in.
struct Place {
    folder: TempDir,
    spool: String,
}

fn place() -> Place {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let spool = folder.path().join("spool").display().to_string();
    Place { folder, spool }
}

impl Place {
    fn jobs(&self) -> std::path::PathBuf {
        Path::new(&self.spool).join("jobs-v1.spool")
    }

    fn damaged(&self) -> std::path::PathBuf {
        Path::new(&self.spool).join("jobs-v1.damaged")
    }

    /// A call of the binary for this spool, with a broker that is away.
    fn away(&self, broker: &Broker, arguments: &[&str]) -> Call {
        self.at(NOWHERE, broker, &[arguments, &["--timeout", "1s"]].concat())
    }

    fn at(&self, url: &str, broker: &Broker, arguments: &[&str]) -> Call {
        let call = somewhere(url, arguments).env("FOREBAY_SPOOL", &self.spool);
        call.env("FOREBAY_NAMESPACE", broker.namespace())
    }

    /// With patience: a broker that is only slow is not what these tests are about.
    fn here(&self, broker: &Broker, arguments: &[&str]) -> Call {
        let patience = ["--timeout", "50s"];
        let given = arguments.contains(&"--timeout");
        let arguments = [arguments, if given { &[] } else { &patience[..] }].concat();
        self.at(broker.url(), broker, &arguments)
    }

    async fn keep(&self, broker: &Broker, id: &str) {
        let publish = ["publish", "a.b", "{\"secret\": 1}", "--id", id];
        assert_eq!(self.away(broker, &publish).json().await["spooled"], true);
    }

    async fn waiting(&self) -> Value {
        let ls = ["spool", "ls", "--spool", &self.spool];
        somewhere(NOWHERE, &ls).json().await["jobs"].clone()
    }
}

/// Takes all jobs off queue `default`, in their order.
async fn take_all(broker: &Broker) -> Vec<Envelope> {
    let config = broker.config();
    let link = Link::open(&config, "look");
    let channel = link.channel(after(super::PATIENCE)).await.expect("a channel").channel;
    let queue = config.topology().queue("default");
    let mut jobs = Vec::new();
    loop {
        let options = BasicGetOptions { no_ack: true };
        let got = channel.basic_get(queue.as_str().into(), options).await.expect("an answer");
        let Some(got) = got else { break };
        jobs.push(Envelope::decode(Raw {
            properties: &got.delivery.properties,
            routing_key: got.delivery.routing_key.as_str(),
            redelivered: false,
            payload: got.delivery.data.into(),
        }));
    }
    link.close().await;
    jobs
}

fn ids(jobs: &[Envelope]) -> Vec<&str> {
    jobs.iter().map(|job| job.id.as_str()).collect()
}

#[tokio::test]
async fn a_job_for_a_broker_that_is_away_is_kept_and_sent_once_with_the_same_id() {
    let (broker, place) = (broker().await, place());
    let publish = ["publish", "a.b", "{\"secret\":\n 1}", "--key", "k", "--header", "tenant=acme"];
    let ran = place.away(&broker, &publish).succeed().await;
    let flush = format!("forebay spool flush --spool {}", place.spool);
    for words in ["spooled: the job is not yet at the broker", "127.0.0.1:1", &flush] {
        assert!(ran.err.contains(words), "{}", ran.err);
    }
    assert!(!ran.err.contains("secret") && !ran.err.contains("hush"), "{}", ran.err);
    assert!(ran.out.contains("default"), "{}", ran.out);
    assert_eq!(place.waiting().await, json!(1));

    let flushed = place.here(&broker, &["spool", "flush"]).json().await;
    assert_eq!((&flushed["sent"], &flushed["left"]), (&json!(1), &json!(0)));
    let jobs = take_all(&broker).await;
    assert_eq!(jobs.len(), 1);
    assert!(ran.out.contains(&jobs[0].id), "{}", ran.out);
    assert_eq!(jobs[0].payload, "{\"secret\":\n 1}");
    assert_eq!(jobs[0].idempotency_key.as_deref(), Some("k"));
    assert_eq!(jobs[0].header("tenant").as_deref(), Some("acme"));
    assert!(!place.jobs().exists(), "nothing is left");
    let again = place.here(&broker, &["spool", "flush"]).json().await;
    assert_eq!(again["sent"], 0);
}

#[tokio::test]
async fn jobs_of_a_bulk_and_of_the_spool_are_signed_as_they_were_made() {
    const KEYS: &str = "one=0123456789abcdef0123456789abcdef";
    let (broker, place) = (broker().await, place());
    let bulk = ["publish", "a.b", "--jsonl", "-"];
    let away = place.away(&broker, &bulk).env("FOREBAY_SIGNING_KEYS", KEYS);
    away.input("1\n2\n").succeed().await;
    // Who sends them needs no keys.
    place.here(&broker, &["spool", "flush"]).succeed().await;
    let here = place.here(&broker, &bulk).env("FOREBAY_SIGNING_KEYS", KEYS);
    here.input("3\n4\n").succeed().await;
    let (jobs, keys) = (take_all(&broker).await, SigningKeys::parse(KEYS).unwrap());
    assert_eq!(jobs.len(), 4);
    for job in jobs {
        assert_eq!(job.verify(&keys, broker.namespace()), Ok(()));
    }
}

#[tokio::test]
async fn what_waits_is_sent_before_a_new_job_in_its_order() {
    let (broker, place) = (broker().await, place());
    for id in ["1", "2", "3"] {
        place.keep(&broker, id).await;
    }
    let ran = place.here(&broker, &["publish", "a.b", "{}", "--id", "4"]).succeed().await;
    assert!(ran.err.contains("3 jobs from the spool"), "{}", ran.err);
    assert_eq!(ids(&take_all(&broker).await), ["1", "2", "3", "4"]);
}

#[tokio::test]
async fn with_a_broker_that_takes_it_nothing_is_written() {
    let (broker, place) = (broker().await, place());
    let published = place.here(&broker, &["publish", "a.b", "{}"]).json().await;
    assert_eq!(published["spooled"], false);
    assert!(!place.jobs().exists());
    let silent = place.here(&broker, &["publish", "a.b", "{}"]).env("FOREBAY_SPOOL", "");
    silent.succeed().await;
    assert_eq!(ready(&broker, "default").await, json!(2));
}

#[tokio::test]
async fn folder_and_files_are_for_their_owner_alone() {
    let (broker, place) = (broker().await, place());
    place.keep(&broker, "1").await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(Path::new(&place.spool)), 0o700);
    for entry in fs::read_dir(&place.spool).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn ls_shows_what_waits_and_no_payload() {
    let (broker, place) = (broker().await, place());
    place.keep(&broker, "1").await;
    place.keep(&broker, "2").await;
    let table = somewhere(NOWHERE, &["spool", "ls", "--spool", &place.spool]).succeed().await;
    let line = table.out.lines().nth(1).expect("a kind");
    for word in [broker.namespace(), "a.b", "default", "2", "ago"] {
        assert!(line.contains(word), "{line}");
    }
    let each = somewhere(NOWHERE, &["spool", "ls", "--jobs", "--spool", &place.spool]).json().await;
    assert_eq!((&each["each"][0]["id"], &each["each"][1]["id"]), (&json!("1"), &json!("2")));
    assert!(!each.to_string().contains("secret"), "{each}");
    somewhere(NOWHERE, &["spool", "ls"]).run().await.failed(2, &["--spool", "FOREBAY_SPOOL"]);
    let missing = ["spool", "ls", "--spool", "not-there"];
    somewhere(NOWHERE, &missing).run().await.failed(2, &["no spool in not-there"]);
}

#[tokio::test]
async fn what_somebody_has_to_mend_is_an_error_and_nothing_is_spooled() {
    let (broker, place) = (broker().await, place());
    let url = format!("amqp://nobody:hush@{}/%2f", broker.address());
    let ran = place.at(&url, &broker, &["publish", "a.b", "{}"]).run().await;
    ran.failed(3, &["refuses user `nobody`"]);
    let never = place.here(&broker, &["publish", "a.b", "{}"]).env("FOREBAY_DECLARE", "never");
    never.run().await.failed(1, &["no queue is bound"]);
    place
        .away(&broker, &["publish", "a.b", "{}", "--queue", "No"])
        .run()
        .await
        .failed(2, &["`No`"]);
    let large = format!("\"{}\"", "x".repeat(17 * 1024 * 1024));
    let large = place.away(&broker, &["publish", "a.b", "-"]).input(large);
    large.run().await.failed(2, &["too large"]);
    assert!(!place.jobs().exists());
    let file = place.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let call = forebay(&broker, &["publish", "a.b", "{}", "--spool", file.to_str().unwrap()]);
    call.run().await.failed(2, &["cannot use --spool"]);
}

#[tokio::test]
async fn a_delay_counts_from_the_first_try() {
    let (broker, place) = (broker().await, place());
    let publish = ["publish", "a.b", "{}", "--delay", "1s", "--id", "late"];
    assert_eq!(place.away(&broker, &publish).json().await["delay_ms"], 1_000);
    let publish = ["publish", "a.b", "{}", "--delay", "1h", "--id", "later"];
    place.away(&broker, &publish).succeed().await;
    // By then the second is over.
    place.here(&broker, &["spool", "flush"]).succeed().await;
    let seen = forebay(&broker, &["queues"]).json().await;
    assert_eq!((&seen["queues"][0]["ready"], &seen["delayed"]["total"]), (&json!(1), &json!(1)));
    assert_eq!(ids(&take_all(&broker).await), ["late"]);
}

#[tokio::test]
async fn a_bulk_publish_goes_on_into_the_spool_and_a_later_one_sends_all() {
    let (broker, place) = (broker().await, place());
    let lines = |from: u64, to: u64| (from..to).map(|n| format!("{n}\n")).collect::<String>();
    let bulk = ["publish", "a.b", "--jsonl", "-"];
    let ran = place.away(&broker, &[&bulk[..], &["--output", "json"]].concat());
    let ran = ran.input(lines(0, 5_000)).succeed().await;
    assert_eq!(ran.json()["spooled"], 5_000, "{}", ran.err);
    assert_eq!(ran.json()["published"], 0);
    assert!(ran.err.contains("spooled: 5,000 jobs are not yet at the broker"), "{}", ran.err);
    assert_eq!(place.waiting().await, json!(5_000));

    let ran = place.here(&broker, &bulk).input(lines(5_000, 5_010)).succeed().await;
    assert!(ran.err.contains("5,000 jobs from the spool"), "{}", ran.err);
    assert_eq!(ready(&broker, "default").await, json!(5_010));
    assert!(!place.jobs().exists());
}

#[tokio::test]
async fn a_broker_that_goes_and_comes_back_amid_a_bulk_publish_gets_all_in_the_end() {
    let (broker, place) = (broker().await, place());
    let proxy = Proxy::to(&broker.address()).await;
    let bulk = ["publish", "a.b", "--jsonl", "-", "--timeout", "2s", "--output", "json"];
    let mut call = place.at(&proxy.url(), &broker, &bulk);
    let mut child = call.start();
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let (mut written, mut held) = (0, false);
    let mut spooled = false;
    // Until jobs lie in the spool, and then until the broker has taken one since.
    let patience = time::Instant::now() + super::PATIENCE;
    loop {
        assert!(time::Instant::now() < patience, "the broker takes nothing: {written} lines");
        use tokio::io::AsyncWriteExt;
        stdin.write_all(format!("{written}\n").as_bytes()).await.expect("it reads on");
        written += 1;
        time::sleep(Duration::from_millis(2)).await;
        if written == 200 {
            proxy.hold();
            held = true;
        }
        if held && fs::metadata(place.jobs()).is_ok_and(|file| file.len() > 0) {
            proxy.pass();
            (held, spooled) = (false, true);
        }
        if spooled && written % 50 == 0 {
            let there = ready(&broker, "default").await.as_u64().unwrap_or(0);
            if there > 210 {
                break;
            }
        }
    }
    drop(stdin);
    let ran = ended(child).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert_eq!((&ran.json()["published"], &ran.json()["spooled"]), (&json!(written), &json!(0)));
    let mut numbers: Vec<u64> = take_all(&broker)
        .await
        .iter()
        .map(|job| std::str::from_utf8(&job.payload).unwrap().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (0..written).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_flush_that_is_killed_loses_nothing() {
    let (broker, place) = (broker().await, place());
    let lines: String = (0..3_000).map(|n| format!("{n}\n")).collect();
    let bulk = ["publish", "a.b", "--jsonl", "-"];
    place.away(&broker, &bulk).input(lines).succeed().await;
    let proxy = Proxy::to(&broker.address()).await;
    // Some confirms pass, the others never come: it is killed while it waits for them.
    let (confirms, stuck) = (AtomicUsize::new(0), Arc::new(Notify::new()));
    let tell = Arc::clone(&stuck);
    proxy.meddle(move |frame| {
        if !frame.is_confirm() || confirms.fetch_add(1, Ordering::AcqRel) < 10 {
            return Meddle::Pass;
        }
        tell.notify_one();
        Meddle::Drop
    });
    let mut child =
        place.at(&proxy.url(), &broker, &["spool", "flush", "--timeout", "60s"]).start();
    time::timeout(super::PATIENCE, stuck.notified()).await.expect("some are sent");
    child.kill().await.expect("it runs");
    assert!(place.waiting().await.as_u64().unwrap() > 0, "it was killed in the middle");

    let flushed = place.here(&broker, &["spool", "flush"]).json().await;
    assert_eq!(flushed["left"], 0);
    let jobs = take_all(&broker).await;
    let mut seen: Vec<_> = jobs.iter().map(|job| (&job.id, &job.payload)).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3_000, "each job under one id");
    assert!(jobs.len() <= 3_000 + 1_000, "{}: only those under way come twice", jobs.len());
}

#[tokio::test]
async fn a_confirm_that_is_lost_leaves_the_job_in_the_spool_and_a_duplicate_has_its_id() {
    let (broker, place) = (broker().await, place());
    forebay(&broker, &["publish", "a.b", "0"]).succeed().await;
    let proxy = Proxy::to(&broker.address()).await;
    proxy.meddle(|frame| if frame.is_confirm() { Meddle::Drop } else { Meddle::Pass });
    let publish = ["publish", "a.b", "1", "--id", "x", "--timeout", "2s"];
    let kept = place.at(&proxy.url(), &broker, &publish).json().await;
    assert_eq!(kept["spooled"], true);
    assert!(kept["because"].as_str().unwrap().contains("twice under one id"), "{kept}");
    place.here(&broker, &["spool", "flush"]).succeed().await;
    assert_eq!(ids(&take_all(&broker).await)[1..], ["x", "x"]);
}

#[tokio::test]
async fn a_broker_without_memory_does_not_lose_a_job() {
    let own = broker_of_its_own("").await;
    let (broker, place) = (own.broker(), place());
    forebay(&broker, &["publish", "a.b", "0", "--id", "first"]).succeed().await;
    own.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    let publish = ["publish", "a.b", "{}", "--id", "x", "--timeout", "3s"];
    let kept = place.here(&broker, &publish).json().await;
    assert_eq!(kept["spooled"], true, "{kept}");
    own.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    place.here(&broker, &["spool", "flush", "--timeout", "30s"]).succeed().await;
    let jobs = take_all(&broker).await;
    assert_eq!(ids(&jobs)[0], "first");
    let copies = jobs.iter().filter(|job| job.id == "x").count();
    assert!((1..=2).contains(&copies) && jobs.len() == 1 + copies, "{:?}", ids(&jobs));
}

#[tokio::test]
async fn the_end_of_a_write_that_was_cut_off_goes_and_is_told() {
    let (broker, place) = (broker().await, place());
    place.keep(&broker, "1").await;
    let mut file = fs::read(place.jobs()).unwrap();
    let half = file[..file.len() / 2].to_vec();
    file.extend(&half);
    fs::write(place.jobs(), &file).unwrap();
    let warning = format!("the last {} bytes of", half.len());

    let ran = place.away(&broker, &["publish", "a.b", "2", "--id", "2"]).succeed().await;
    assert!(ran.err.contains(&warning), "{}", ran.err);
    file = fs::read(place.jobs()).unwrap();
    file.extend(&half);
    fs::write(place.jobs(), &file).unwrap();
    let ran = place.here(&broker, &["spool", "flush"]).succeed().await;
    assert!(ran.err.contains(&warning), "{}", ran.err);
    assert_eq!(ids(&take_all(&broker).await), ["1", "2"]);
}

#[tokio::test]
async fn a_damaged_job_is_named_and_set_aside_and_the_others_are_sent() {
    let (broker, place) = (broker().await, place());
    for id in ["one", "two", "three"] {
        place.keep(&broker, id).await;
    }
    let mut file = fs::read(place.jobs()).unwrap();
    let second = file.split_inclusive(|byte| *byte == b'\n').next().unwrap().len();
    // In its payload.
    let at = second + file[second..].windows(6).position(|part| part == b"secret").unwrap();
    file[at] = b'X';
    fs::write(place.jobs(), &file).unwrap();
    let listed = somewhere(NOWHERE, &["spool", "ls", "--spool", &place.spool]).json().await;
    assert_eq!(listed["jobs"], 2);
    assert!(listed["damaged_bytes"].as_u64().unwrap() > 0);

    let ran = place.here(&broker, &["spool", "flush"]).succeed().await;
    let aside = place.damaged();
    for words in ["damaged, job two", aside.to_str().unwrap()] {
        assert!(ran.err.contains(words), "{}", ran.err);
    }
    assert!(!ran.err.contains("Xecret"), "{}", ran.err);
    assert_eq!(ids(&take_all(&broker).await), ["one", "three"]);
    assert!(fs::read_to_string(&aside).unwrap().contains("Xecret"));
    assert!(!place.jobs().exists());
}

#[tokio::test]
async fn a_disk_that_is_full_is_named_and_the_job_counts_as_failed() {
    let (broker, place) = (broker().await, place());
    place.keep(&broker, "1").await;
    let before = fs::read(place.jobs()).unwrap();
    let payload = format!("\"{}\"", "x".repeat(3_000));
    for arguments in
        [&["publish", "a.b", "-", "--id", "2"][..], &["publish", "a.b", "--jsonl", "-"]]
    {
        // A limit on the size of files stands for a disk that is full: a write ends midway.
        let ran = limited(place.away(&broker, arguments), 2).input(payload.clone()).run().await;
        let file = place.jobs();
        ran.failed(3, &["spooled either", file.to_str().unwrap(), "ulimit -f", "127.0.0.1:1"]);
        assert!(!ran.err.contains("xxx"), "{}", ran.err);
        assert_eq!(fs::read(place.jobs()).unwrap(), before, "half a job is no job");
    }
    place.here(&broker, &["spool", "flush"]).succeed().await;
    assert_eq!(ids(&take_all(&broker).await), ["1"]);
}

/// The call with files of at most so many blocks.
fn limited(mut call: Call, blocks: u32) -> Call {
    let plain = call.command;
    let mut limited = Command::new("/bin/sh");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    limited.args(["-c", &script]).arg(plain.as_std().get_program()).args(plain.as_std().get_args());
    for (name, value) in plain.as_std().get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited.current_dir(call.directory.path()).stdin(Stdio::piped());
    call.command = limited;
    call
}

#[tokio::test]
async fn two_at_once_take_turns_and_each_job_comes_once() {
    let (broker, place) = (broker().await, place());
    let lines: String = (0..2_000).map(|n| format!("{n}\n")).collect();
    let bulk = ["publish", "a.b", "--jsonl", "-"];
    let kept = tokio::join!(
        place.away(&broker, &bulk).input(lines.clone()).succeed(),
        place.away(&broker, &bulk).input(lines).succeed(),
        place.keep(&broker, "alone"),
    );
    drop(kept);
    assert_eq!(place.waiting().await, json!(4_001));
    let flush = || place.here(&broker, &["spool", "flush", "--timeout", "30s"]).json();
    let (one, two) = tokio::join!(flush(), flush());
    assert_eq!(one["sent"].as_u64().unwrap() + two["sent"].as_u64().unwrap(), 4_001);
    assert_eq!(ready(&broker, "default").await, json!(4_001));
}

#[tokio::test]
async fn while_another_process_sends_a_new_job_is_kept_and_a_flush_says_so() {
    let (broker, place) = (broker().await, place());
    place.keep(&broker, "1").await;
    let lock = fs::File::create(Path::new(&place.spool).join("flush.lock")).unwrap();
    lock.lock().unwrap();
    let publish = ["publish", "a.b", "2", "--id", "2", "--timeout", "1s"];
    let kept = place.here(&broker, &publish).json().await;
    assert!(kept["because"].as_str().unwrap().contains("another process"), "{kept}");
    let ran: Ran = place.here(&broker, &["spool", "flush", "--timeout", "1s"]).run().await;
    ran.failed(1, &["another process"]);
    drop(lock);
    place.here(&broker, &["spool", "flush"]).succeed().await;
    assert_eq!(ids(&take_all(&broker).await), ["1", "2"]);
}

#[tokio::test]
async fn a_job_that_the_broker_does_not_want_stays_and_holds_up_no_other() {
    let (broker, place) = (broker().await, place());
    broker.owns("mail");
    let topology = ["topology", "apply", "--queue", "mail"];
    forebay(&broker, &topology).succeed().await;
    let to = |queue| ["publish", "a.b", "{}", "--queue", queue, "--id", queue];
    place.away(&broker, &to("nowhere")).succeed().await;
    place.away(&broker, &to("mail")).succeed().await;
    let flush = || place.here(&broker, &["spool", "flush"]).env("FOREBAY_DECLARE", "never");
    let ran = flush().run().await;
    ran.failed(1, &["stays in the spool: no queue is bound for `nowhere`"]);
    assert_eq!(ran.out, "1 job sent, 1 left\n");
    assert_eq!(ready(&broker, "mail").await, json!(1));
    broker.owns("nowhere");
    place.here(&broker, &["spool", "flush"]).succeed().await;
    assert_eq!(ready(&broker, "nowhere").await, json!(1));
}

#[tokio::test]
async fn jobs_of_another_namespace_are_not_sent_into_this_one() {
    let (broker, other, place) = (broker().await, super::broker().await, place());
    place.keep(&other, "theirs").await;
    place.keep(&broker, "ours").await;
    let ran = place.here(&broker, &["spool", "flush"]).run().await;
    ran.failed(1, &["1 job belongs to other namespaces", "--namespace"]);
    assert_eq!(ids(&take_all(&broker).await), ["ours"]);
    place.here(&other, &["spool", "flush"]).succeed().await;
    assert_eq!(ids(&take_all(&other).await), ["theirs"]);
}

#[tokio::test]
async fn a_flush_without_a_broker_keeps_all_and_says_that_it_is_out_of_reach() {
    let (broker, place) = (broker().await, place());
    place.keep(&broker, "1").await;
    place.away(&broker, &["spool", "flush"]).run().await.failed(3, &["no broker answers"]);
    assert_eq!(place.waiting().await, json!(1));
}
