//! Where the settings come from, and whether the manifest can be run.
//! In: flags, environment, manifest. Out: findings; no credentials in any of them.

use forebay_producer::Declare;

use super::finding::Finding;
use crate::globals::{Globals, Session};
use crate::handover;

const RUN: &str = "forebay-run";

/// One line for each setting.
pub(super) fn look(globals: &Globals, session: &Session) -> Vec<Finding> {
    let config = &session.config;
    let broker = &session.manifest.broker;
    let from = |id, in_manifest| origin(globals.origin(id), in_manifest);
    let tls = if config.uses_tls() { "with TLS" } else { "without TLS" };
    let url = format!(
        "broker {} {tls}, user `{}`, virtual host `{}` ({})",
        config.broker(),
        config.user(),
        config.vhost(),
        from("url", broker.url.is_some())
    );
    let namespace = format!(
        "namespace `{}` ({})",
        config.topology().namespace(),
        from("namespace", broker.namespace.is_some())
    );
    let may = match config.declares() {
        Declare::Never => "nothing is declared by workers and producers",
        _ => "workers and producers declare what is missing",
    };
    let declare = format!("{may} ({})", from("declare", broker.declare.is_some()));
    let mut findings = vec![
        Finding::ok("settings.broker", url),
        Finding::ok("settings.namespace", namespace),
        Finding::ok("settings.declare", declare),
    ];
    if !config.uses_tls() && !all_local(&config.broker()) {
        let what = "user, password and jobs go over the network in the clear: a URL with amqps:// \
                    has TLS";
        findings.push(Finding::warning("settings.tls", what));
    }
    if session.management.is_none() {
        let what = "without the management API bindings, policies, alarms and nodes cannot be \
                    looked at: set FOREBAY_MANAGEMENT_URL=http://user:password@host:15672";
        findings.push(Finding::note("settings.management", what));
    }
    findings
}

/// `forebay-run --check` knows best.
pub(super) async fn look_at_manifest(globals: &Globals, session: &Session) -> Vec<Finding> {
    let Some(file) = &session.manifest.file else { return Vec::new() };
    let name = file.display();
    if !session.manifest.has_functions() {
        return vec![Finding::ok("manifest.functions", format!("{name} names no functions"))];
    }
    let arguments = ["--check".as_ref(), "--config".as_ref(), file.as_os_str()];
    let finding = match handover::ask(RUN, &arguments).await {
        Ok(checked) if checked.status.success() => {
            Finding::ok("manifest.functions", format!("forebay-run can run {name}"))
        }
        Ok(checked) => {
            let said = String::from_utf8_lossy(&checked.stderr);
            return unfit(&said, &name.to_string(), globals);
        }
        Err(error) => {
            let what = format!("{name} was not checked: forebay-run is not here ({error})");
            Finding::note("manifest.functions", what).mend("cargo install forebay-handlers")
        }
    };
    vec![finding]
}

/// One for each fault; the command stands below the last.
fn unfit(said: &str, name: &str, globals: &Globals) -> Vec<Finding> {
    let faults = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut findings: Vec<_> = faults
        .map(|fault| {
            let cannot = format!("forebay-run cannot run {name}: {fault}");
            // Most begin with file and line.
            let what = if fault.contains(name) { fault.to_owned() } else { cannot };
            Finding::fault("manifest.functions", what)
        })
        .collect();
    let last = findings.pop().unwrap_or_else(|| {
        Finding::fault("manifest.functions", format!("forebay-run cannot run {name}"))
    });
    findings.push(last.mend(format!("forebay{} run --check", globals.repeated())));
    findings
}

fn origin(given: Option<&'static str>, in_manifest: bool) -> &'static str {
    given.unwrap_or(if in_manifest { "from the manifest" } else { "by default" })
}

fn all_local(hosts: &str) -> bool {
    let local =
        |host: &str| ["127.", "localhost:", "[::1]:"].iter().any(|one| host.starts_with(one));
    hosts.split(", ").all(local)
}
