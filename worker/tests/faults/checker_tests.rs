//! The checker finds what it is there to find: each line of a record, told as a story.

use super::*;

/// `12 worker-1 begun a 1 0 0`: milliseconds, process, event; a job's record in short.
fn story(lines: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let line = line.trim().split(' ').collect::<Vec<_>>().join("\t");
        let mut entry = Entry::of_line(&line).unwrap_or_else(|| panic!("{line}"));
        entry.at *= 1_000;
        entry
    };
    lines.lines().filter(|line| !line.trim().is_empty()).map(entry).collect()
}

fn at(id: &str, place: Place, reason: &str) -> Found {
    Found { id: id.into(), place, reason: reason.into() }
}

fn checked(lines: &str, found: &[Found]) -> Verdict {
    check(&story(lines), found, &Rules::default())
}

const PUBLISHED: &str = "
    10 p intent a quick
    20 p confirmed a
";
const DONE: &str = "
    30 w1 begun a 1 0 0
    40 w1 ended a 1 0 0 ok
";

fn with(lines: &[&str]) -> String {
    lines.concat()
}

#[test]
fn a_job_that_was_confirmed_and_is_nowhere_is_lost() {
    let verdict = checked(PUBLISHED, &[]);
    assert_eq!((verdict.confirmed, verdict.lost.clone()), (1, vec!["a".to_owned()]));
    assert!(verdict.is_red());
}

#[test]
fn a_run_that_did_not_end_well_does_not_save_a_job() {
    for end in [
        "",
        "40 w1 ended a 1 0 0 fail",
        "40 w1 ended a 1 0 0 dropped",
        "40 w1 ended a 1 0 0 reject",
    ] {
        let verdict = checked(&with(&[PUBLISHED, "30 w1 begun a 1 0 0\n", end]), &[]);
        assert_eq!(verdict.lost, ["a"], "{end}");
    }
}

#[test]
fn a_job_that_is_done_queued_waiting_unrouted_or_dead_is_not_lost() {
    assert!(!checked(&with(&[PUBLISHED, DONE]), &[]).is_red());
    for place in [Place::Queue, Place::Delay, Place::Unrouted] {
        assert!(!checked(PUBLISHED, &[at("a", place, "")]).is_red());
    }
    let rejected = PUBLISHED.replace("quick", "rejects");
    assert!(!checked(&rejected, &[at("a", Place::Dead, "rejected")]).is_red());
}

#[test]
fn what_was_never_confirmed_may_be_gone() {
    assert!(!checked("10 p intent a quick", &[]).is_red());
    assert!(!checked("10 p intent a quick\n20 p failed a true cut", &[]).is_red());
    assert!(!checked("10 p intent a quick\n20 p failed a false cut", &[]).is_red());
}

#[test]
fn what_was_said_not_to_have_been_sent_must_not_be_there() {
    let denied = "10 p intent a quick\n20 p failed a false cut\n";
    assert_eq!(checked(&with(&[denied, DONE]), &[]).denied, ["a"]);
    assert_eq!(checked(denied, &[at("a", Place::Queue, "")]).denied, ["a"]);
    assert!(!checked(&with(&[&denied.replace("false", "true"), DONE]), &[]).is_red());
}

#[test]
fn a_dead_letter_that_the_script_does_not_explain_is_an_error_unless_the_fault_entitles_to_it() {
    let found = [at("a", Place::Dead, "crashed")];
    let verdict = checked(PUBLISHED, &found);
    assert_eq!(verdict.dead_in_error, [("a".to_owned(), "crashed".to_owned())]);
    assert!(verdict.is_red());
    let rules = Rules { may_die_of: &["crashed"] };
    assert!(!check(&story(PUBLISHED), &found, &rules).is_red());
}

#[test]
fn an_operator_is_charged_with_what_was_there_and_no_more_than_he_was_told() {
    let destroyed = "500 site destroyed 1 0";
    assert_eq!(checked(&with(&[PUBLISHED, destroyed]), &[]).destroyed, 1);
    // One that was published after.
    let late = with(&[destroyed, "\n600 p intent a quick\n700 p confirmed a"]);
    assert_eq!(checked(&late, &[]).lost, ["a"]);
    // One that was published before, and confirmed long after.
    let late = with(&["400 p intent a quick\n", destroyed, "\n3000 p confirmed a"]);
    assert_eq!(checked(&late, &[]).lost, ["a"]);
    // Two are missing, one was destroyed.
    let two = with(&[PUBLISHED, &PUBLISHED.replace(" a", " b"), destroyed]);
    let verdict = checked(&two, &[]);
    assert_eq!((verdict.destroyed, verdict.lost.len()), (1, 1));
}

#[test]
fn what_was_under_way_to_a_queue_while_it_was_deleted_is_beside_the_number_that_was_told() {
    // It took 200 ms.
    let destroyed = "\n500 site destroyed 1 200000\n";
    let under_way = PUBLISHED.replace("10 p", "250 p").replace("20 p", "350 p");
    let verdict = checked(&with(&[&under_way.replace(" a", " b"), PUBLISHED, destroyed]), &[]);
    assert_eq!((verdict.destroyed, verdict.lost.len()), (2, 0));
    // What was confirmed before counts towards the number.
    let verdict = checked(&with(&[&PUBLISHED.replace(" a", " b"), PUBLISHED, destroyed]), &[]);
    assert_eq!((verdict.destroyed, verdict.lost.len()), (1, 1));
}

#[test]
fn a_second_run_needs_a_fault_that_explains_it() {
    let again = "
        3000 w2 begun a 1 0 0
        3010 w2 ended a 1 0 0 ok
    ";
    let verdict = checked(&with(&[PUBLISHED, DONE, again]), &[]);
    assert_eq!(verdict.again, [("a".to_owned(), None)]);
    assert!(verdict.is_red());
    // The ack of the first run may have been on its way when the path was cut.
    let cut = "\n100 site struck cut\n100 site healed\n";
    let verdict = checked(&with(&[PUBLISHED, DONE, cut, again]), &[]);
    assert_eq!(verdict.again, [("a".to_owned(), Some("cut".to_owned()))]);
    assert_eq!((verdict.after_end, verdict.is_red()), (1, false));
    // A fault long after the first run explains nothing.
    let late = "\n2900 site struck cut\n2900 site healed\n";
    assert!(checked(&with(&[PUBLISHED, DONE, late, again]), &[]).is_red());
}

#[test]
fn the_ack_of_a_failed_run_may_be_out_until_the_next_attempt_begins() {
    let failed = "
        30 w1 begun a 1 0 0
        40 w1 ended a 1 0 0 fail
    ";
    let cut = "\n5000 site struck cut\n5000 site healed\n";
    let again = "\n5100 w2 begun a 1 0 0\n5200 w2 ended a 1 0 0 fail\n";
    // Its retry was still to be published.
    let next = "\n6000 w1 begun a 2 0 0\n6100 w1 ended a 2 0 0 ok\n";
    let verdict = checked(&with(&[PUBLISHED, failed, cut, again, next]), &[]);
    assert_eq!(verdict.again, [("a".to_owned(), Some("cut".to_owned()))]);
    // It was published long before.
    let next = next.replace("6000", "300").replace("6100", "310");
    assert!(checked(&with(&[PUBLISHED, failed, &next, cut, again]), &[]).is_red());
}

#[test]
fn a_retry_and_a_redrive_are_no_second_run() {
    let lines = "
        10 p intent a fails-once
        20 p confirmed a
        30 w1 begun a 1 0 0
        40 w1 ended a 1 0 0 fail
        50 w1 begun a 2 0 0
        60 w1 ended a 2 0 0 reject
        70 w1 begun a 1 1 0
        80 w1 ended a 1 1 0 ok
    ";
    let verdict = checked(lines, &[]);
    assert_eq!((verdict.again.len(), verdict.is_red()), (0, false));
}

#[test]
fn a_worker_that_does_not_consume_again_is_silent_and_one_that_does_has_recovered() {
    let lost = "
        1 w1 started
        2 w1 consuming
        3 w2 started
        4 w2 consuming
        100 site struck cut
        100 site healed
        110 w1 idle reset
        110 w2 idle reset
        350 w1 consuming
    ";
    let verdict = checked(lost, &[]);
    assert_eq!((verdict.silent.clone(), verdict.is_red()), (vec!["w2".to_owned()], true));
    let verdict = checked(&with(&[lost, "900 w2 consuming"]), &[]);
    assert_eq!((verdict.recovery, verdict.is_red()), (Some(Duration::from_millis(800)), false));
    // One that was killed owes nothing.
    assert!(!checked(&with(&[lost, "900 w2 gone killed"]), &[]).is_red());
    // One that never began to consume is silent too.
    assert_eq!(checked("1 w1 started", &[]).silent, ["w1"]);
}
