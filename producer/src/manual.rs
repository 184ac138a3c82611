//! Man pages of the binaries (feature `manual`).
//! In: a clap command. Out: its page; what `--help` says stands there once more and is written
//! nowhere else.

use std::io::{self, Write};

use clap::{Arg, Command};
use clap_mangen::Man;
use roff::{Roff, bold, roman};

/// Writes the man page of one command. `root` is the whole program, whose exit codes hold for all
/// of its verbs.
///
/// # Errors
/// When it cannot be written.
pub fn page(command: &Command, root: &Command, to: &mut dyn Write) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let version = root.get_version().unwrap_or_default();
    // By hand: the library leaves out an empty date, and what follows moves into its place.
    writeln!(to, ".TH \"{name}\" \"1\" \"\" \"forebay {version}\" \"Forebay\"")?;
    let man = Man::new(command.clone());
    man.render_name_section(to)?;
    man.render_synopsis_section(to)?;
    man.render_description_section(to)?;
    man.render_options_section(to)?;
    if command.has_subcommands() {
        man.render_subcommands_section(to)?;
    }
    let (mut sections, notes) = after_help(command);
    if !sections.iter().any(|section| section.title == EXIT_STATUS) {
        sections.extend(after_help(root).0.into_iter().filter(|one| one.title == EXIT_STATUS));
    }
    let mut page = Roff::new();
    for section in &sections {
        section.write(&mut page);
    }
    environment(command, &mut page);
    files(command, &mut page);
    if !notes.is_empty() {
        page.control("SH", ["NOTES"]);
        page.text([roman(notes.join(" "))]);
    }
    see_also(command, root, &mut page);
    page.to_writer(to)
}

const EXIT_STATUS: &str = "EXIT STATUS";

/// What stands below a heading in `--help`, line by line.
struct Section {
    title: String,
    lines: Vec<String>,
}

impl Section {
    fn write(&self, page: &mut Roff) {
        page.control("SH", [self.title.as_str()]);
        page.control("nf", []);
        for line in &self.lines {
            page.text([roman(line.as_str())]);
        }
        page.control("fi", []);
    }
}

/// Paragraphs that begin with a heading, and the lines of those that do not.
fn after_help(command: &Command) -> (Vec<Section>, Vec<String>) {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (mut sections, mut notes) = (Vec::new(), Vec::new());
    for paragraph in text.split("\n\n") {
        match paragraph.split_once(":\n") {
            Some((heading, lines)) if !heading.contains('\n') => {
                let lines = lines.lines().map(|line| line.trim_start().to_owned()).collect();
                sections.push(Section { title: title(heading), lines });
            }
            _ => notes.extend(paragraph.lines().map(str::to_owned)),
        }
    }
    (sections, notes)
}

fn title(heading: &str) -> String {
    if heading == "Exit codes" { EXIT_STATUS.to_owned() } else { heading.to_uppercase() }
}

fn environment(command: &Command, page: &mut Roff) {
    let variables: Vec<_> =
        command.get_arguments().filter_map(|arg| Some((arg.get_env()?, arg))).collect();
    if variables.is_empty() {
        return;
    }
    page.control("SH", ["ENVIRONMENT"]);
    for (variable, arg) in variables {
        page.control("TP", []);
        page.text([bold(variable.to_string_lossy())]);
        page.text([roman(help(arg))]);
        if let Some(flag) = arg.get_long() {
            page.text([roman("The flag "), bold(format!("--{flag}")), roman(" comes before it.")]);
        }
    }
}

fn files(command: &Command, page: &mut Roff) {
    let Some(config) = command.get_arguments().find(|arg| arg.get_id() == "config") else {
        return;
    };
    page.control("SH", ["FILES"]);
    page.control("TP", []);
    page.text([bold("forebay.toml")]);
    page.text([roman(help(config))]);
}

fn see_also(command: &Command, root: &Command, page: &mut Roff) {
    let Some(name) = command.get_display_name().filter(|name| *name != root.get_name()) else {
        return;
    };
    let above = name.rsplit_once('-').map_or(name, |(above, _)| above);
    page.control("SH", ["SEE ALSO"]);
    page.text([bold(above), roman("(1)")]);
}

fn help(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    if help.ends_with('.') { help } else { help + "." }
}
