//! A PostgreSQL for tests: given, or started privately.
//! In: `FOREBAY_TEST_POSTGRES_URL`, or Debian's `postgresql`. Out: the URL of an empty database.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tokio::sync::OnceCell;

use super::server::{Server, program};

const REMEDY: &str = "Set FOREBAY_TEST_POSTGRES_URL to a PostgreSQL in which tests may create \
                      databases, or install one: apt-get install postgresql";

/// An empty database, dropped at the end where the server was given.
#[derive(Debug)]
pub struct Postgres {
    url: String,
    database: String,
    /// Where the database is to be dropped; a private server goes as a whole.
    given: Option<String>,
    own: Option<Server>,
}

/// A database of its own on a PostgreSQL that all tests of this process share.
///
/// # Panics
/// When there is none and none can be started: with the remedy.
pub async fn postgres() -> Postgres {
    static SHARED: OnceCell<(String, Option<Server>)> = OnceCell::const_new();
    let shared = SHARED.get_or_init(|| async {
        match std::env::var("FOREBAY_TEST_POSTGRES_URL") {
            Ok(url) if !url.is_empty() => (url, None),
            _ => {
                let server = start().await;
                (url(&server), Some(server))
            }
        }
    });
    let (server, private) = shared.await;
    let given = private.is_none().then(|| server.clone());
    database_on(server, given, None).await
}

/// A database on a PostgreSQL for one test alone, which may be stopped and killed.
///
/// # Panics
/// When none can be started: with the remedy.
pub async fn postgres_of_its_own() -> Postgres {
    let server = start().await;
    database_on(&url(&server), None, Some(server)).await
}

impl Postgres {
    /// The URL of the database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops a server of its own at once, as if it had crashed; what was committed is on disk.
    ///
    /// # Panics
    /// When it is shared.
    pub fn kill(&self) {
        self.own().stop();
    }

    /// Starts it again.
    ///
    /// # Panics
    /// When it is shared, or does not start.
    pub async fn start(&self) {
        self.own().start().await;
        ready(&self.url, self.own()).await;
    }

    /// Runs statements and returns what they print, one row a line, columns separated by `|`.
    ///
    /// # Panics
    /// When one of them fails.
    pub async fn sql(&self, statements: &str) -> String {
        sql(&self.url, statements).await
    }

    fn own(&self) -> &Server {
        self.own.as_ref().expect("postgres_of_its_own() was asked for")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(server) = &self.given {
            let drop = format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", self.database);
            _ = psql(server, &drop).output();
        }
    }
}

async fn database_on(server: &str, given: Option<String>, own: Option<Server>) -> Postgres {
    let database = format!("forebay_test_{:012x}", fastrand::u64(..1 << 48));
    sql(server, &format!("CREATE DATABASE \"{database}\"")).await;
    let url = with_database(server, &database);
    Postgres { url, database, given, own }
}

/// Puts a database's name into a URL.
fn with_database(url: &str, database: &str) -> String {
    let (base, query) =
        url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let host = base.find("://").map_or(0, |at| at + 3);
    let end = base[host..].find('/').map_or(base.len(), |at| host + at);
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    format!("{}/{database}{query}", &base[..end])
}

fn url(server: &Server) -> String {
    format!("postgres://forebay@127.0.0.1:{}/postgres", server.port)
}

async fn sql(url: &str, statements: &str) -> String {
    let mut psql = psql(url, statements);
    let run = tokio::task::spawn_blocking(move || psql.output());
    let output = run.await.expect("no panic").expect("psql was found before");
    succeeded(&output, statements);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn psql(url: &str, statements: &str) -> Command {
    let psql = program("psql", &folders()).unwrap_or_else(|| panic!("no `psql` here. {REMEDY}"));
    let mut command = Command::new(psql);
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statements, url]);
    command.stdin(Stdio::null());
    command
}

fn succeeded(output: &Output, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {said}");
}

/// Debian keeps each version's programs apart, and not on the PATH. Newest first.
fn folders() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut versions: Vec<_> = versions.map(|entry| entry.path()).collect();
    versions.sort_by_key(|path| std::cmp::Reverse(number(path)));
    versions.into_iter().map(|version| version.join("bin")).collect()
}

async fn start() -> Server {
    let found = |name: &str| {
        program(name, &folders()).unwrap_or_else(|| {
            panic!(
                "no PostgreSQL to test with: FOREBAY_TEST_POSTGRES_URL is not set, and there is \
                 no `{name}` on the PATH or in /usr/lib/postgresql. {REMEDY}"
            )
        })
    };
    let (initdb, postgres) = (found("initdb"), found("postgres"));
    let user = other_user();
    let prepare = prepare(&initdb, user.as_deref());
    // QUIT: at once, as in a crash, yet with all its processes.
    let server = Server::new("postgres", "QUIT", &prepare, |folder, port| {
        user.iter().flat_map(|user| as_user(user)).chain(command(&postgres, folder, port)).collect()
    });
    server.start().await;
    ready(&url(&server), &server).await;
    server
}

/// It accepts connections before it lets anybody in.
async fn ready(url: &str, server: &Server) {
    for _ in 0..500 {
        let mut psql = psql(url, "SELECT 1");
        let run = tokio::task::spawn_blocking(move || psql.output());
        if run.await.expect("no panic").is_ok_and(|output| output.status.success()) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the test PostgreSQL lets nobody in: {}", server.log());
}

/// PostgreSQL refuses to run as root: then somebody else runs it.
fn other_user() -> Option<String> {
    let id = |arguments: &[&str]| Command::new("id").args(arguments).output().ok();
    let me = id(&["-u"]).map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if me.as_deref() != Some("0") {
        return None;
    }
    let exists = |user: &str| id(&["-u", user]).is_some_and(|output| output.status.success());
    ["postgres", "nobody"].into_iter().find(|user| exists(user)).map(str::to_owned)
}

fn as_user(user: &str) -> Vec<String> {
    ["setpriv", &format!("--reuid={user}"), "--clear-groups", "--"].map(str::to_owned).into()
}

fn prepare(initdb: &Path, user: Option<&str>) -> String {
    let initdb = initdb.display();
    let (chown, wrap) = match user {
        Some(user) => (format!("chown {user} \"$folder\" && "), as_user(user).join(" ")),
        None => (String::new(), String::new()),
    };
    format!(
        "{chown} cd \"$folder\" && {wrap} '{initdb}' -D \"$folder/data\" -U forebay -A trust \
         -E UTF8 -N --locale=C"
    )
}

fn command(postgres: &Path, folder: &Path, port: u16) -> Vec<String> {
    let data = folder.join("data").display().to_string();
    let mut command = vec![postgres.display().to_string(), "-D".to_owned(), data];
    command.extend(["-h", "127.0.0.1", "-p", &port.to_string(), "-k", ""].map(str::to_owned));
    // The data of a test need not outlive the machine, only the process.
    for setting in ["fsync=off", "max_connections=200", "shared_buffers=16MB"] {
        command.extend(["-c".to_owned(), setting.to_owned()]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_takes_the_place_of_the_one_in_the_url() {
        for (given, expected) in [
            ("postgres://h:1/old", "postgres://h:1/new"),
            ("postgres://u:p@h", "postgres://u:p@h/new"),
            ("postgresql://u@h/old?sslmode=disable", "postgresql://u@h/new?sslmode=disable"),
        ] {
            assert_eq!(with_database(given, "new"), expected);
        }
    }
}
