//! `forebay doctor`: what an operator runs first when something is wrong.
//! In: settings. Out: every check with a sentence and the commands that mend what is wrong. It
//! changes nothing on the broker.

mod broker;
mod finding;
mod live;
mod managed;
mod permissions;
mod queues;
mod report;
mod settings;
mod topology;

use std::time::Duration;

use clap::Args;
use forebay_producer::DeadError;
use forebay_producer::link::examine::Examiner;
use forebay_producer::wire::delay::LEVELS;
use tokio::time;

use self::finding::{Finding, Findings, Level};
use self::live::Live;
use self::topology::{Plan, Reach};
use crate::exit::{self, Exit};
use crate::globals::{Globals, Session};
use crate::management::{self, Api};
use crate::{known, screen};

/// All checks together take so many times `--timeout` at most.
const ROUNDS: u32 = 6;

/// Check settings, broker, topology and permissions, and say how to mend them
#[derive(Args)]
#[command(after_help = "\
It changes nothing: what it asks of the broker can only be refused, and the refusal tells what there
is to know. Bindings, policies, alarms and nodes are looked at where a management API is given.

Examples:
  forebay doctor
  forebay doctor --queue mail --role worker
  FOREBAY_MANAGEMENT_URL=http://monitor:secret@rabbit:15672 forebay doctor
  forebay doctor --output json | jq -r '.checks[] | select(.level == \"fault\") | .mend[]'

Exit codes:
  0  no fault; with --strict no warning either
  1  a fault
  2  the settings or the manifest cannot be used
  3  the broker is out of reach, or refuses us")]
pub(crate) struct Doctor {
    /// This queue; may be given several times [default: all known queues]
    #[arg(long, value_name = "NAME")]
    queue: Vec<String>,

    /// What this user must be able to do [default: any of them]
    #[arg(long, value_enum, value_name = "ROLE")]
    role: Option<permissions::Role>,

    /// A warning is as bad as a fault
    #[arg(long)]
    strict: bool,
}

pub(crate) async fn run(verb: &Doctor, globals: &Globals) -> anyhow::Result<Exit> {
    let mut findings = Findings::default();
    match globals.session() {
        Ok(session) => {
            let most = session.timeout.saturating_mul(ROUNDS).max(Duration::from_secs(1));
            let examined = examine(verb, globals, &session, &mut findings);
            let ended = time::timeout(most, examined).await;
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => findings.push(cut_short(&fault.to_string())),
                Err(_) => findings.push(cut_short("it took too long; give more with --timeout")),
            }
        }
        Err(error) => {
            findings.push(Finding::fault("settings.usable", exit::sentence(&error)));
        }
    }
    if globals.output == crate::globals::Format::Table {
        report::for_people(&findings)?;
    } else {
        screen::say_json(&report::as_json(&findings))?;
    }
    Ok(verdict(&findings, verb.strict))
}

fn verdict(findings: &Findings, strict: bool) -> Exit {
    if findings.faulty("settings.") || findings.faulty("manifest.") {
        return Exit::Unusable;
    }
    if findings.faulty("broker.") {
        return Exit::Refused;
    }
    match findings.worst() {
        Level::Fault => Exit::Failed,
        Level::Warning if strict => Exit::Failed,
        _ => Exit::Fine,
    }
}

/// Everything that was found before it stays found.
fn cut_short(because: &str) -> Finding {
    Finding::fault("broker.lost", format!("the broker was lost on the way: {because}"))
}

async fn examine(
    verb: &Doctor,
    globals: &Globals,
    session: &Session,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    findings.extend(settings::look(globals, session));
    findings.extend(settings::look_at_manifest(globals, session).await);
    let examiner = Examiner::new(&session.config);
    let examined = on_the_broker(verb, globals, session, &examiner, findings).await;
    examiner.close().await;
    examined
}

async fn on_the_broker(
    verb: &Doctor,
    globals: &Globals,
    session: &Session,
    examiner: &Examiner,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let Some(broker) = broker::look(session, examiner, findings).await else {
        return Ok(());
    };
    let (api, live) = managed(session, findings).await?;
    findings.extend(broker::features(&broker, live.is_some()));

    let overview = live.as_ref().map(|live| {
        live.queues
            .iter()
            .map(|queue| (queue.name.clone(), management::Counts::default()))
            .collect()
    });
    let known = known::of(&verb.queue, session, overview)?;
    let top = match &live {
        Some(live) => Reach::To(top(live, session)),
        None => topology::top(session).await?,
    };
    let forebay = format!("forebay{}", globals.repeated());
    let events = topology::has_events(session).await?;
    let plan = Plan::new(known.queues, top, events, forebay, session);
    let looks = match &live {
        Some(live) => plan.declarations.iter().map(|one| (one.clone(), live.look(one))).collect(),
        None => topology::look(&plan, examiner).await?,
    };
    findings.extend(plan.findings(&looks, live.is_some()));
    match queues::look(&plan, session).await {
        Ok(found) => findings.extend(found),
        Err(DeadError::Connect(error)) => return Err(error.into()),
        Err(error) => findings.push(Finding::warning("queues.look", error.to_string())),
    }
    if let (Some(live), Some(api)) = (&live, &api) {
        findings.extend(managed::findings(live, &plan, api));
    }
    // Last, because a publish is what makes an alarm felt.
    let queue = plan.queues.first().map_or("default", String::as_str);
    match permissions::look(queue, verb.role, session, examiner).await {
        Ok(found) => findings.extend(found),
        Err(_) if examiner.link().is_blocked() => findings.push(blocked(examiner)),
        Err(fault) => return Err(fault.into()),
    }
    Ok(())
}

/// What the management API says, if there is one. An API that does not answer is a warning.
async fn managed(
    session: &Session,
    findings: &mut Findings,
) -> anyhow::Result<(Option<Api>, Option<Live>)> {
    let Some(url) = &session.management else { return Ok((None, None)) };
    let api = match Api::new(url, session.timeout) {
        Ok(api) => api,
        Err(error) => {
            findings.push(Finding::fault("settings.management", error.to_string()));
            return Ok((None, None));
        }
    };
    match live::ask(&api, session.config.vhost()).await {
        Ok(live) => Ok((Some(api), Some(live))),
        Err(error) => {
            let what = format!("{}; going on without it", exit::sentence(&error));
            findings.push(Finding::warning("management.reach", what));
            Ok((None, None))
        }
    }
}

fn top(live: &Live, session: &Session) -> Option<u8> {
    let there = |name: String| live.queues.iter().any(|queue| queue.name == name);
    (0..LEVELS).rev().find(|level| there(session.config.topology().delay(*level)))
}

fn blocked(examiner: &Examiner) -> Finding {
    let what = format!("{}: permissions were not tried to their end", examiner.link().trouble());
    Finding::fault("broker.blocked", what).mend("rabbitmq-diagnostics alarms")
}
