//! `forebay run`, `forebay bench` and `forebay gateway`: another program, found beside this one or on
//! PATH.
//! In: the arguments, before anybody parses them. Out: this process becomes the other program.

use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::time;

use crate::exit::Stop;
use crate::globals::{Format, Globals};

/// How long another program may take for what we ask it.
const ANSWER: Duration = Duration::from_secs(10);

/// Run the functions of forebay.toml: a worker (forebay-run)
#[derive(Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Examples:
  forebay run
  forebay run --config jobs.toml --check
  forebay run --help

All arguments go to forebay-run, which `cargo install forebay-handlers` installs."
)]
pub(crate) struct Run {
    #[command(flatten)]
    rest: Rest,
}

/// Measure Forebay on this machine and broker, beside the bare client library (forebay-run)
#[derive(Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Examples:
  forebay bench
  forebay bench --scenario drain --rounds 5
  forebay bench --help

All arguments go to forebay-run bench, which `cargo install forebay-handlers` installs."
)]
pub(crate) struct Bench {
    #[command(flatten)]
    rest: Rest,
}

/// Let browsers publish jobs and follow them: Socket.IO, WebSocket, SSE, HTTP (forebay-gateway)
#[derive(Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Examples:
  forebay gateway
  forebay gateway --check
  forebay gateway --help

All arguments go to forebay-gateway, which `cargo install forebay-gateway` installs. Its settings are
gateway.toml, not forebay.toml: name another file behind the verb."
)]
pub(crate) struct Gateway {
    #[command(flatten)]
    rest: Rest,
}

/// For the help only: the verb is handed over before anything is parsed.
#[derive(Args)]
struct Rest {
    /// Go to the other program unchanged
    #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

/// Another program that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Handover {
    program: &'static str,
    package: &'static str,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
}

/// Our own flags, then a verb whose arguments are not looked at.
#[derive(Parser)]
#[command(disable_help_flag = true, disable_version_flag = true, disable_help_subcommand = true)]
struct Peek {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    #[command(external_subcommand)]
    Any(Vec<OsString>),
}

/// The program that the command line asks for, if it does.
pub(crate) fn asked(command_line: impl IntoIterator<Item = OsString>) -> Option<Handover> {
    let peek = Peek::try_parse_from(command_line).ok()?;
    let Verb::Any(words) = peek.verb?;
    let (verb, rest) = words.split_first()?;
    let (program, package) = match verb.to_str()? {
        "run" | "bench" => ("forebay-run", "forebay-handlers"),
        "gateway" => ("forebay-gateway", "forebay-gateway"),
        _ => return None,
    };
    let globals = &peek.globals;
    let mut arguments: Vec<OsString> = Vec::new();
    if verb == "bench" {
        arguments.push(verb.clone());
        if globals.output == Format::Json {
            arguments.extend(["--output", "json"].map(OsString::from));
        }
    }
    // The gateway has settings of its own: the manifest would be none.
    if let Some(file) = globals.config.clone().filter(|_| verb != "gateway") {
        arguments.extend([OsString::from("--config"), file.into()]);
    }
    arguments.extend_from_slice(rest);
    // A variable, because arguments are visible to everybody on the machine.
    let mut environment = Vec::new();
    let mut set = |name, value: Option<String>| {
        environment.extend(value.map(|value| (name, OsString::from(value))));
    };
    set("AMQP_URL", globals.url());
    for (name, file) in globals.named_files() {
        let by_flag =
            file.is_some_and(|file| env::var_os(name).as_deref() != Some(file.as_os_str()));
        if name == "FOREBAY_SIGNING_KEYS_FILE" && by_flag {
            // The flag comes before the variable; an empty one is as good as none.
            set("FOREBAY_SIGNING_KEYS", Some(String::new()));
        }
        set(name, file.map(|file| file.display().to_string()));
    }
    set("FOREBAY_NAMESPACE", globals.namespace());
    set("FOREBAY_DECLARE", globals.declare.map(|may| may.as_str().to_owned()));
    set("FOREBAY_STRICT_TOPOLOGY", globals.strict_topology.map(|strict| strict.to_string()));
    Some(Handover { program, package, arguments, environment })
}

/// Becomes the other program.
pub(crate) fn run(asked: &Handover) -> anyhow::Result<Infallible> {
    let mut command = Command::new(path(asked.program));
    command
        .args(&asked.arguments)
        .envs(asked.environment.iter().map(|(name, value)| (name, value)));
    let error = match become_it(&mut command) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let Handover { program, package, .. } = asked;
    let why = match error.kind() {
        ErrorKind::NotFound => {
            format!("{program} is not installed; install it with: cargo install {package}")
        }
        _ => format!("cannot start {program}: {error}"),
    };
    Err(Stop::Usage(why).into())
}

/// Runs another program of ours and waits for what it says, not for ever.
pub(crate) async fn ask(program: &str, arguments: &[impl AsRef<OsStr>]) -> io::Result<Output> {
    let mut command = tokio::process::Command::new(path(program));
    let output = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let late = |_| io::Error::new(ErrorKind::TimedOut, "it did not end within 10s");
    time::timeout(ANSWER, output).await.map_err(late)?
}

/// The verb came where only the full parser sees it.
pub(crate) fn not_understood() -> anyhow::Error {
    Stop::Usage("put `run`, `bench` or `gateway` directly behind the global options".to_owned())
        .into()
}

/// Beside us, else left to PATH.
fn path(program: &str) -> PathBuf {
    beside_us(program).unwrap_or_else(|| program.into())
}

fn beside_us(program: &str) -> Option<PathBuf> {
    let name = format!("{program}{}", env::consts::EXE_SUFFIX);
    let path = env::current_exe().ok()?.with_file_name(OsStr::new(&name));
    path.is_file().then_some(path)
}

#[cfg(unix)]
fn become_it(command: &mut Command) -> io::Result<Infallible> {
    use std::os::unix::process::CommandExt;
    Err(command.exec())
}

#[cfg(not(unix))]
fn become_it(command: &mut Command) -> io::Result<Infallible> {
    let status = command.status()?;
    std::process::exit(status.code().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(command_line: &str) -> Option<Handover> {
        let words = command_line.split(' ').map(OsString::from);
        asked(words)
    }

    #[test]
    fn arguments_behind_the_verb_are_passed_on_unchanged() {
        let asked = ask("forebay run --timeout soon --help -- --output x").unwrap();
        assert_eq!(asked.program, "forebay-run");
        let arguments = ["--timeout", "soon", "--help", "--", "--output", "x"];
        assert_eq!(asked.arguments, arguments.map(OsString::from));
    }

    #[test]
    fn flags_before_the_verb_are_passed_on_too() {
        let asked = ask("forebay --config f.toml --url amqp://a --namespace n run 5").unwrap();
        assert_eq!(asked.arguments, ["--config", "f.toml", "5"].map(OsString::from));
        assert!(asked.environment.contains(&("AMQP_URL", "amqp://a".into())));
        assert!(asked.environment.contains(&("FOREBAY_NAMESPACE", "n".into())));
    }

    #[test]
    fn a_benchmark_is_a_verb_of_the_other_program() {
        let asked = ask("forebay --config f.toml --output json bench -s drain").unwrap();
        assert_eq!(asked.program, "forebay-run");
        let arguments = ["bench", "--output", "json", "--config", "f.toml", "-s", "drain"];
        assert_eq!(asked.arguments, arguments.map(OsString::from));
    }

    #[test]
    fn the_gateway_gets_its_arguments_and_not_the_manifest() {
        let asked = ask("forebay --config f.toml --url amqp://a gateway --check").unwrap();
        assert_eq!((asked.program, asked.package), ("forebay-gateway", "forebay-gateway"));
        assert_eq!(asked.arguments, ["--check"].map(OsString::from));
        assert!(asked.environment.contains(&("AMQP_URL", "amqp://a".into())));
    }

    #[test]
    fn our_own_verbs_are_not_handed_over() {
        for line in ["forebay queues", "forebay help run", "forebay --help", "forebay", "forebay x"]
        {
            assert_eq!(ask(line), None, "{line}");
        }
    }
}
