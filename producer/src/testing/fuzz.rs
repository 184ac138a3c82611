//! Tries inputs on a target: those of its corpus, then others made from them.
//! In: a folder of inputs and a function that panics at a finding. Out: nothing, or the finding,
//! kept as a file of the corpus.

use std::fs;
use std::panic::{RefUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;

/// So many inputs in the ordinary test run, the same each time.
const SHORT: u64 = 5_000;
/// No input becomes longer.
const LONGEST: usize = 4 * 1024;

/// Runs `check` on every file in the folder `corpus`, relative to the package, and then on changed
/// inputs: on 5,000 that are the same in each run, or at random for as many minutes as
/// `FOREBAY_FUZZ_MINUTES` says.
///
/// # Panics
/// At an input at which `check` panics; it has become a file in the folder, and is tried again by
/// every later run.
pub fn fuzz(corpus: &str, check: impl Fn(&[u8]) + RefUnwindSafe) {
    let folder = Path::new(corpus);
    let known = read(folder);
    assert!(!known.is_empty(), "{corpus} holds no input to begin with");
    for (file, input) in &known {
        if let Err(panic) = catch_unwind(|| check(input)) {
            eprintln!("the input is {}", file.display());
            resume_unwind(panic);
        }
    }
    let end = time().map(|time| Instant::now() + time);
    let mut rng = end.map_or_else(|| Rng::with_seed(1), |_| Rng::new());
    let mut tried = 0_u64;
    while end.map_or(tried < SHORT, |end| Instant::now() < end) {
        for _ in 0..50 {
            let input = changed(&known, &mut rng);
            tried += 1;
            if let Err(panic) = catch_unwind(|| check(&input)) {
                let file = folder.join(format!("finding-{:016x}", rng.u64(..)));
                match fs::write(&file, &input) {
                    Ok(()) => eprintln!("the input is kept as {}", file.display()),
                    Err(error) => eprintln!("the input {input:?} is not kept: {error}"),
                }
                resume_unwind(panic);
            }
        }
    }
    eprintln!("{corpus}: {} inputs of the corpus, {tried} others, no finding", known.len());
}

fn read(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut known: Vec<_> =
        files.filter_map(|file| fs::read(&file).ok().map(|input| (file, input))).collect();
    known.sort();
    known
}

fn time() -> Option<Duration> {
    let minutes = std::env::var("FOREBAY_FUZZ_MINUTES").ok();
    match minutes.map(|minutes| minutes.parse::<f64>()) {
        None => None,
        Some(Ok(minutes)) if (0.0..=1e6).contains(&minutes) => {
            Some(Duration::from_secs_f64(minutes * 60.0))
        }
        Some(_) => panic!("FOREBAY_FUZZ_MINUTES is no number of minutes"),
    }
}

/// A known input with a few changes.
fn changed(known: &[(PathBuf, Vec<u8>)], rng: &mut Rng) -> Vec<u8> {
    let any = |rng: &mut Rng| &known[rng.usize(..known.len())].1;
    let mut input = any(rng).clone();
    for _ in 0..=rng.usize(..6) {
        let at = rng.usize(..=input.len());
        let to = rng.usize(at..=input.len().min(at + 40));
        match rng.u8(..7) {
            0 => drop(input.drain(at..to)),
            1 => input[at..to].iter_mut().for_each(|byte| *byte = rng.u8(..)),
            2 => input[at..to].iter_mut().take(1).for_each(|byte| *byte ^= 1 << rng.u8(..8)),
            3 => input[at..to].fill([0, 1, 0x7f, 0x80, 0xff][rng.usize(..5)]),
            4 => drop(input.splice(at..at, (0..rng.usize(..16)).map(|_| rng.u8(..)))),
            5 => {
                let again = input[at..to].to_vec();
                input.splice(at..at, again);
            }
            _ => {
                let other = any(rng);
                let from = rng.usize(..=other.len());
                let until = rng.usize(from..=other.len());
                input.splice(at..to, other[from..until].iter().copied());
            }
        }
    }
    input.truncate(LONGEST);
    input
}
