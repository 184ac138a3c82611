//! A Redis for tests: given, or started privately.
//! In: `FOREBAY_TEST_REDIS_URL`, or Debian's `redis-server`. Out: a URL, and a prefix for one test.

use std::path::Path;

use tokio::sync::OnceCell;

use super::server::{Server, program};

/// A Redis and a prefix for keys that nobody else uses.
#[derive(Debug)]
pub struct Redis {
    url: String,
    prefix: String,
    own: Option<Server>,
}

/// A Redis that all tests of this process share, with a random prefix.
///
/// # Panics
/// When there is none and none can be started: with the remedy.
pub async fn redis() -> Redis {
    static SHARED: OnceCell<(String, Option<Server>)> = OnceCell::const_new();
    let shared = SHARED.get_or_init(|| async {
        match std::env::var("FOREBAY_TEST_REDIS_URL") {
            Ok(url) if !url.is_empty() => (url, None),
            _ => {
                let server = start().await;
                (url(&server), Some(server))
            }
        }
    });
    Redis { url: shared.await.0.clone(), prefix: random_prefix(), own: None }
}

/// A Redis for one test alone, which may be stopped and killed. It writes each change to disk.
///
/// # Panics
/// When none can be started: with the remedy.
pub async fn redis_of_its_own() -> Redis {
    let server = start().await;
    Redis { url: url(&server), prefix: random_prefix(), own: Some(server) }
}

impl Redis {
    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The random prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Kills a server of its own.
    ///
    /// # Panics
    /// When it is shared.
    pub fn kill(&self) {
        self.own().kill();
    }

    /// Starts it again, with what it had on disk.
    ///
    /// # Panics
    /// When it is shared, or does not start.
    pub async fn start(&self) {
        self.own().start().await;
    }

    fn own(&self) -> &Server {
        self.own.as_ref().expect("redis_of_its_own() was asked for")
    }
}

fn random_prefix() -> String {
    format!("test-{:012x}:", fastrand::u64(..1 << 48))
}

fn url(server: &Server) -> String {
    format!("redis://127.0.0.1:{}/0", server.port)
}

async fn start() -> Server {
    let redis = program("redis-server", &[]).unwrap_or_else(|| {
        panic!(
            "no Redis to test with: FOREBAY_TEST_REDIS_URL is not set, and there is no \
             `redis-server` on the PATH. Set it to a Redis that tests may write to, or install \
             one: apt-get install redis-server"
        )
    });
    let server = Server::new("redis", "TERM", ":", |folder, port| command(&redis, folder, port));
    server.start().await;
    server
}

fn command(redis: &Path, folder: &Path, port: u16) -> Vec<String> {
    let mut command = vec![redis.display().to_string()];
    let settings = [
        ("port", port.to_string()),
        ("bind", "127.0.0.1".to_owned()),
        ("dir", folder.display().to_string()),
        ("appendonly", "yes".to_owned()),
        ("appendfsync", "always".to_owned()),
        ("save", String::new()),
        ("maxmemory-policy", "noeviction".to_owned()),
    ];
    for (name, value) in settings {
        command.extend([format!("--{name}"), value]);
    }
    command
}
