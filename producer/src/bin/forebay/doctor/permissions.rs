//! What this user may do against what each role needs.
//! In: rights that a role needs. Out: a finding for each role, with the line that grants it. Tried
//! without doing anything: see `link/examine`.

use clap::ValueEnum;
use forebay_producer::link::examine::{Examiner, Right};
use forebay_producer::link::fault::Fault;
use forebay_producer::{Declare, Topology};

use super::finding::{Finding, Level};
use crate::globals::Session;
use crate::screen::quoted;

/// What somebody is here for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    Publisher,
    Worker,
    Operator,
}

const ROLES: [Role; 3] = [Role::Publisher, Role::Worker, Role::Operator];

/// What a role needs and this user has not, in the broker's words.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lack {
    Nothing,
    /// Only what it takes to declare.
    Declaring(String),
    Rights(String),
}

/// Tries the role that is wanted and no other; without one all of them, of which one is enough.
pub(super) async fn look(
    queue: &str,
    wanted: Option<Role>,
    session: &Session,
    examiner: &Examiner,
) -> Result<Vec<Finding>, Fault> {
    let mut tried = Vec::new();
    for role in ROLES.into_iter().filter(|role| wanted.is_none_or(|wanted| wanted == *role)) {
        tried.push((role, lack(role, queue, session, examiner).await?));
    }
    let enough = tried.iter().any(|(_, lack)| *lack == Lack::Nothing);
    // Who could do all but declare is meant to be that.
    let nearly = tried.iter().any(|(_, lack)| matches!(lack, Lack::Declaring(_)));
    let findings = tried.into_iter().map(|(role, lack)| {
        let near = !nearly || matches!(lack, Lack::Declaring(_));
        let must = wanted.is_some() || (!enough && near);
        finding(role, &lack, must, wanted.is_some(), session)
    });
    Ok(findings.collect())
}

async fn lack(
    role: Role,
    queue: &str,
    session: &Session,
    examiner: &Examiner,
) -> Result<Lack, Fault> {
    let config = &session.config;
    let names = Names::new(config.topology(), queue);
    if let Some(words) = refused(&names.needed(role, Declare::Never), examiner).await? {
        return Ok(Lack::Rights(words));
    }
    let declaring = refused(&names.needed(role, config.declares()), examiner).await?;
    Ok(declaring.map_or(Lack::Nothing, Lack::Declaring))
}

/// The first of these rights that this user has not, in the broker's words.
async fn refused(rights: &[Right<'_>], examiner: &Examiner) -> Result<Option<String>, Fault> {
    for right in rights {
        if let Err(words) = examiner.may(*right).await? {
            return Ok(Some(words));
        }
    }
    Ok(None)
}

/// Full names, which rights borrow.
struct Names {
    jobs: String,
    dead_letters: String,
    level: String,
    queue: String,
    dead: String,
}

impl Names {
    fn new(topology: &Topology, queue: &str) -> Self {
        Self {
            jobs: topology.jobs_exchange().to_owned(),
            dead_letters: topology.dead_exchange(),
            level: topology.delay(0),
            queue: topology.queue(queue),
            dead: topology.dead_queue(queue),
        }
    }

    fn needed(&self, role: Role, declare: Declare) -> Vec<Right<'_>> {
        let mut rights = match role {
            Role::Publisher => vec![Right::Publish(&self.jobs), Right::Publish(&self.level)],
            Role::Worker => vec![
                Right::Consume(&self.queue),
                Right::Publish(&self.jobs),
                Right::Publish(&self.dead_letters),
                Right::Publish(&self.level),
                // Answers to calls.
                Right::Publish(""),
            ],
            Role::Operator => vec![
                Right::Consume(&self.dead),
                Right::Publish(&self.jobs),
                Right::Publish(&self.level),
            ],
        };
        if role == Role::Operator || declare != Declare::Never {
            rights.extend([
                Right::DeclareExchange(&self.jobs),
                Right::DeclareQueue(&self.queue),
                Right::DeclareQueue(&self.dead),
                Right::Bind(&self.queue),
            ]);
        }
        rights
    }
}

/// Only whoever named the role gets the line that sets its rights: it replaces those that the user
/// has, which may be another role's.
fn finding(role: Role, lack: &Lack, must: bool, named: bool, session: &Session) -> Finding {
    let config = &session.config;
    let (id, name, does) = match role {
        Role::Publisher => ("permissions.publisher", "publisher", "publish"),
        Role::Worker => ("permissions.worker", "worker", "work"),
        Role::Operator => ("permissions.operator", "operator", "operate"),
    };
    let user = config.user();
    let declares = role != Role::Operator && config.declares() != Declare::Never;
    let level = if must { Level::Fault } else { Level::Note };
    match lack {
        Lack::Nothing => {
            let and_declare = if declares { " and declare what it needs" } else { "" };
            Finding::ok(id, format!("user `{user}` may {does}{and_declare}"))
        }
        Lack::Declaring(words) => {
            let what = format!(
                "user `{user}` may {does}, but not declare what is missing: {words}; let an \
                 operator run `forebay topology apply`, and say here that nothing is to be declared"
            );
            let finding = Finding::new(id, level, what);
            if must { finding.mend("export FOREBAY_DECLARE=never") } else { finding }
        }
        Lack::Rights(words) => {
            let what = format!("user `{user}` lacks what the role {name} needs: {words}");
            if !named {
                let what = format!("{what}; --role {name} shows the line that grants it");
                return Finding::new(id, level, what);
            }
            let less = if declares { "; with FOREBAY_DECLARE=never it needs less" } else { "" };
            let what = format!(
                "{what}; this line sets it and replaces what the user has in this virtual \
                 host{less}"
            );
            let command = grant(role, config.declares(), config.topology().namespace());
            let (vhost, user) = (quoted(config.vhost()), quoted(user));
            Finding::new(id, level, what)
                .mend(format!("rabbitmqctl set_permissions -p {vhost} {user} {command}"))
        }
    }
}

/// Configure, write, read: as in `docs/wire.md`. A namespace has no characters that mean something
/// in a pattern.
fn grant(role: Role, declare: Declare, namespace: &str) -> String {
    let ns = namespace;
    match (role, declare) {
        (Role::Publisher, Declare::Never) => {
            format!(r"'^$' '^{ns}(\.events|\.delay\.[0-9]{{2}})?$' '^$'")
        }
        (Role::Worker, Declare::Never) => format!(
            r"'^$' '^(amq\.default|{ns}(\.dead-letters|\.events|\.delay\.[0-9]{{2}})?)$' '^{ns}\.[a-z0-9_-]+$'"
        ),
        _ => format!(r"'^{ns}(\..*)?$' '^(amq\.default|{ns}(\..*)?)$' '^{ns}(\..*)?$'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `docs/wire.md` has the same lines.
    #[test]
    fn each_role_is_granted_what_the_documentation_says() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wire.md");
        let documented = std::fs::read_to_string(file).unwrap();
        for (role, user) in
            [(Role::Publisher, "producer"), (Role::Worker, "worker"), (Role::Operator, "operator")]
        {
            let line =
                format!("set_permissions -p / {user} {}", grant(role, Declare::Never, "forebay"));
            assert!(documented.contains(&line), "{line}");
        }
        assert_eq!(
            grant(Role::Publisher, Declare::Auto, "x"),
            grant(Role::Operator, Declare::Never, "x")
        );
    }

    #[test]
    fn who_may_declare_nothing_needs_less() {
        let names = Names::new(&Topology::new("shop").unwrap(), "mail");
        let count = |role, declare| names.needed(role, declare).len();
        assert_eq!(count(Role::Publisher, Declare::Never), 2);
        assert!(count(Role::Publisher, Declare::Auto) > 2);
        assert_eq!(count(Role::Operator, Declare::Auto), count(Role::Operator, Declare::Never));
    }
}
