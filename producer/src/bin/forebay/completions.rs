//! `forebay completions`: what a shell needs to complete our words.
//! In: a shell's name. Out: its script on stdout.

use clap::{Arg, ArgAction, Args, Command};
use clap_complete::{Shell, ValueHint};

use crate::exit::Exit;
use crate::screen;

/// Print a script that completes verbs and flags in your shell
#[derive(Args)]
#[command(after_help = "\
Examples:
  forebay completions bash > ~/.local/share/bash-completion/completions/forebay
  forebay completions zsh > \"${fpath[1]}/_forebay\"
  forebay completions fish > ~/.config/fish/completions/forebay.fish
  forebay completions elvish >> ~/.config/elvish/rc.elv
  forebay completions powershell | Out-String | Invoke-Expression

bash wants the folder to be there (mkdir -p) and the package bash-completion, zsh a new session.
forebay-run has a script of its own: forebay-run --completions SHELL.")]
pub(crate) struct Completions {
    /// Which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(verb: &Completions, command: Command) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(verb.shell, &mut fitting(command), "forebay", &mut script);
    screen::say(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Fine)
}

/// The command with its global flags where they mean something: behind `run` and `bench` another
/// program reads them, which has only some.
fn fitting(command: Command) -> Command {
    let globals = command.get_arguments().filter(|arg| arg.is_global_set()).cloned();
    let globals: Vec<_> = globals.map(|arg| arg.global(false)).collect();
    command.mut_args(|arg| arg.global(false)).mut_subcommands(|verb| match verb.get_name() {
        "run" => of_the_worker(verb, &globals),
        "bench" => of_the_benchmark(verb, &globals),
        _ => with(verb, &globals),
    })
}

fn with(verb: Command, globals: &[Arg]) -> Command {
    verb.args(globals).mut_subcommands(|verb| with(verb, globals))
}

/// What `forebay-run` shares with us, and what it is called with most.
fn of_the_worker(run: Command, globals: &[Arg]) -> Command {
    const SHARED: [&str; 5] = ["url", "namespace", "config", "declare", "strict_topology"];
    let shared = globals.iter().filter(|arg| SHARED.contains(&arg.get_id().as_str()));
    run.args(shared)
        .mut_arg("_arguments", |arguments| arguments.value_hint(ValueHint::Other))
        .arg(Arg::new("check").long("check").action(ArgAction::SetTrue))
        .arg(Arg::new("queue").long("queue").value_name("NAME"))
        .arg(Arg::new("help").long("help").action(ArgAction::SetTrue))
}

/// The flags that a benchmark is called with most.
fn of_the_benchmark(bench: Command, globals: &[Arg]) -> Command {
    const SHARED: [&str; 4] = ["url", "namespace", "config", "output"];
    let shared = globals.iter().filter(|arg| SHARED.contains(&arg.get_id().as_str()));
    let own = ["scenario", "rounds", "jobs", "queue-type", "prefetch", "concurrency", "payload"];
    bench
        .args(shared)
        .mut_arg("_arguments", |arguments| arguments.value_hint(ValueHint::Other))
        .args(own.map(|name| Arg::new(name).long(name).value_name("VALUE")))
        .arg(Arg::new("from").long("from").value_name("FILE").value_hint(ValueHint::FilePath))
        .arg(Arg::new("write").long("write").value_name("FILE").value_hint(ValueHint::FilePath))
        .arg(Arg::new("help").long("help").action(ArgAction::SetTrue))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn script(shell: Shell) -> String {
        let (mut command, mut script) = (fitting(crate::Cli::command()), Vec::new());
        clap_complete::generate(shell, &mut command, "forebay", &mut script);
        String::from_utf8(script).unwrap()
    }

    #[test]
    fn flags_stand_behind_the_verbs_that_take_them() {
        let fish = script(Shell::Fish);
        let lines = |verb: &str| {
            let of = format!("__fish_forebay_using_subcommand {verb}");
            fish.lines().filter(|line| line.contains(&of)).collect::<Vec<_>>().join("\n")
        };
        assert!(lines("queues").contains("-l output") && lines("queues").contains("-l watch"));
        assert!(lines("run").contains("-l check") && lines("run").contains("-l config"));
        assert!(lines("bench").contains("-l scenario") && lines("bench").contains("-l output"));
        assert!(!lines("bench").contains("-l declare"));
        assert!(!lines("run").contains("-l output") && !lines("run").contains("-l timeout"));
    }

    #[test]
    fn every_shell_has_its_script() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            assert!(script(shell).contains("publish"), "{shell}");
        }
    }
}
