//! `forebay`: publish jobs, look at queues, move dead letters, declare the topology.
//! In: arguments, environment, `forebay.toml`. Out: what a verb did, and one of four exit codes;
//! each verb has a file of its own, this one only parses and dispatches.

mod awaited;
mod bulk;
mod completions;
mod dead;
mod delays;
mod doctor;
mod exit;
mod follow;
mod globals;
mod handover;
mod known;
mod ledger;
mod lines;
mod man;
mod management;
mod manifest;
mod moment;
mod order;
mod publish;
mod queues;
mod screen;
mod spool;
mod spooled;
mod template;
mod topology;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use exit::Exit;
use globals::Globals;

const AFTER_HELP: &str = "\
Examples:
  forebay publish email.send '{\"to\": \"ada@example.org\"}'
  forebay publish report.render --delay 5m < report.json
  forebay follow --channel orders
  forebay queues --watch
  forebay dead ls --queue mail
  forebay delays ls
  forebay topology apply --queue mail
  forebay doctor

Settings: flags come before the environment (AMQP_URL, FOREBAY_NAMESPACE, FOREBAY_DECLARE,
FOREBAY_STRICT_TOPOLOGY, FOREBAY_MANAGEMENT_URL, FOREBAY_SPOOL), the environment before
forebay.toml.

Exit codes:
  0  done; for a publish with --spool also: kept safely, to be sent later
  1  work failed: a job was not published, a dead letter was not moved, nothing was found
  2  wrong use: arguments, configuration, or a topology that does not match
  3  the broker is out of reach, or refuses us";

/// A serverless-style worker framework for RabbitMQ: publish jobs, look at queues, move dead
/// letters
#[derive(Parser)]
#[command(name = "forebay", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    // Much larger than the others.
    Publish(Box<publish::Publish>),
    Follow(follow::Follow),
    Queues(queues::Queues),
    Dead(dead::Dead),
    Delays(delays::Delays),
    Topology(topology::Topology),
    Spool(spool::Spool),
    Doctor(doctor::Doctor),
    Run(handover::Run),
    Bench(handover::Bench),
    Gateway(handover::Gateway),
    Completions(completions::Completions),
    Man(man::Manual),
}

fn main() -> ExitCode {
    // Before everything else: what follows `run`, `bench` or `gateway` is not ours to parse.
    if let Some(asked) = handover::asked(std::env::args_os()) {
        return exit::code(handover::run(&asked).map(|never| match never {}));
    }
    let matches = Cli::command().get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    cli.globals.note_origins(&matches);
    screen::log_to_stderr(cli.globals.verbose);
    exit::code(match cli.verb {
        // Neither a manifest nor a broker is needed for it.
        Verb::Completions(verb) => completions::run(&verb, Cli::command()),
        verb => dispatch(verb, &cli.globals),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn dispatch(verb: Verb, globals: &Globals) -> anyhow::Result<Exit> {
    match &verb {
        // It says itself what is wrong with the settings.
        Verb::Doctor(verb) => return doctor::run(verb, globals).await,
        Verb::Man(verb) => return man::run(verb, Cli::command()).await,
        _ => {}
    }
    let session = globals.session()?;
    match verb {
        Verb::Publish(verb) => publish::run(*verb, &session, globals).await,
        Verb::Follow(verb) => follow::run(verb, &session, globals).await,
        Verb::Queues(verb) => queues::run(&verb, &session).await,
        Verb::Dead(verb) => dead::run(verb, &session).await,
        Verb::Delays(verb) => delays::run(&verb, &session, globals).await,
        Verb::Topology(verb) => topology::run(&verb, &session).await,
        Verb::Spool(verb) => spool::run(verb, &session).await,
        // The others have been served before.
        _ => Err(handover::not_understood()),
    }
}
