//! `forebay dead export`: a copy of dead letters as JSON lines.
//! In: piles and a filter. Out: one object for each, to stdout or a file; nothing is taken.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use forebay_producer::DeadLetters;

use super::letter;
use super::{Sight, Where, Which, count, matching};
use crate::exit::{Exit, Stop};
use crate::globals::Session;
use crate::screen;

/// Copy dead letters to a file, one JSON object a line
#[derive(Args)]
#[command(after_help = "\
It takes nothing: they stay dead letters. A payload that is not JSON is `payload_base64`.

Examples:
  forebay dead export > dead.jsonl
  forebay dead export --queue mail --limit 65535 --to-file mail.jsonl
  forebay dead export --kind email.send | jq -c .payload | forebay publish email.send --jsonl -")]
pub(crate) struct Export {
    #[command(flatten)]
    place: Where,
    /// Write here; the file must not be there yet
    #[arg(long, value_name = "FILE")]
    to_file: Option<PathBuf>,

    // Last: its heading holds for everything behind it.
    #[command(flatten)]
    which: Which,
}

pub(super) async fn run(verb: &Export, session: &Session) -> anyhow::Result<Exit> {
    let piles = verb.place.piles(session).await?;
    let letters = DeadLetters::new(&session.config);
    let sights = piles.look(&letters, &verb.which.filter(), session).await?;
    letters.close().await;
    match &verb.to_file {
        Some(file) => write(&sights, &mut BufWriter::new(create(file)?))?,
        None => write(&sights, &mut io::stdout().lock())?,
    }
    let many = count(matching(&sights));
    match &verb.to_file {
        Some(file) => screen::note(format_args!("{many} copied to {}", file.display())),
        None => screen::aside(format_args!("{many} copied; {}", piles.origin)),
    }
    sights.iter().for_each(Sight::tell_the_rest);
    Ok(Exit::Fine)
}

fn write(sights: &[Sight], to: &mut impl Write) -> Result<(), Stop> {
    for found in sights.iter().flat_map(|sight| &sight.listing.letters) {
        screen::write_line(to, letter::json(found))?;
    }
    to.flush().map_err(|error| screen::unwritten(&error))
}

fn create(file: &Path) -> Result<File, Stop> {
    File::create_new(file).map_err(|error| {
        let why = match error.kind() {
            ErrorKind::AlreadyExists => "it is there already; choose another name".to_owned(),
            _ => error.to_string(),
        };
        Stop::Usage(format!("cannot write {}: {why}", file.display()))
    })
}
