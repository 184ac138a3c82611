//! `forebay man`: the manual, made from what `--help` says.
//! In: a folder, or nothing. Out: a page for each verb there, or the main page on stdout.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command};
use forebay_producer::manual;

use crate::exit::{Exit, Stop};
use crate::{handover, screen};

/// Also the page of our verb `run`, which says less.
const WORKER_PAGE: &str = "forebay-run.1";
/// Pages that another program writes, and how it is asked.
const WORKER_PAGES: [(&str, &[&str]); 2] =
    [(WORKER_PAGE, &["--man"]), ("forebay-run-bench.1", &["bench", "--man"])];

/// Print the manual page, or write the pages of all verbs to a folder
#[derive(Args)]
#[command(after_help = "\
Examples:
  forebay man | man -l -
  forebay man --dir ~/.local/share/man/man1 && man forebay-publish
  sudo forebay man --dir /usr/local/share/man/man1

The pages forebay-run(1) and forebay-run-bench(1) are among them if forebay-run is installed.")]
pub(crate) struct Manual {
    /// Write forebay.1, forebay-publish.1 and so on there; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) async fn run(verb: &Manual, mut command: Command) -> anyhow::Result<Exit> {
    command = command.disable_help_subcommand(true);
    // Names of verbs with those before them, and flags that all verbs take.
    command.build();
    let Some(dir) = &verb.dir else {
        let mut page = Vec::new();
        manual::page(&command, &command, &mut page)?;
        io::stdout().write_all(&page).map_err(|error| screen::unwritten(&error))?;
        return Ok(Exit::Fine);
    };
    let wrote = write_all(dir, &command).map_err(|error| Stop::Usage(error.to_string()));
    let mut pages = wrote.with_context(|| format!("cannot write to {}", dir.display()))?;
    for (name, arguments) in WORKER_PAGES {
        match handover::ask("forebay-run", arguments).await {
            Ok(page) if page.status.success() => {
                fs::write(dir.join(name), page.stdout).context("cannot write its page")?;
                pages += 1;
            }
            Ok(_) => screen::note(format_args!("note: without {name}: this forebay-run has none")),
            Err(_) => screen::note(format_args!("note: without {name}: forebay-run is not here")),
        }
    }
    let pages = screen::count(pages, "page", "pages");
    screen::say(format_args!("{pages} written to {}", dir.display()))?;
    Ok(Exit::Fine)
}

fn write_all(dir: &Path, root: &Command) -> io::Result<u64> {
    fs::create_dir_all(dir)?;
    write(dir, root, root)
}

/// One page, and those of the verbs below it.
fn write(dir: &Path, command: &Command, root: &Command) -> io::Result<u64> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let page = format!("{name}.1");
    // Another program writes that one.
    let mut pages = 0;
    if page != WORKER_PAGE {
        let mut text = Vec::new();
        manual::page(command, root, &mut text)?;
        fs::write(dir.join(page), text)?;
        pages += 1;
    }
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages += write(dir, verb, root)?;
    }
    Ok(pages)
}
