//! RabbitMQ in containers: one that all tests share, and one for a test that breaks it.
//! In: a Docker engine. Out: a broker that answers.

use std::fs::File;
use std::net::TcpListener;
use std::time::Duration;

use testcontainers::core::{ContainerPort, ExecCommand, Mount};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt, ReuseDirective};
use tokio::time::{self, Instant};

use super::Broker;
use crate::config::Config;
use crate::link::connection::Link;

/// The image that tests run on; `docker/rabbitmq/obtain.sh` reads the same file.
const IMAGE: &str = include_str!("../rabbitmq-image");
pub(super) const AMQP: u16 = 5672;
const AMQPS: u16 = 5671;
pub(super) const MANAGEMENT: u16 = 15672;
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// A broker for one test alone, that may be restarted, killed and configured.
pub struct OwnBroker {
    container: ContainerAsync<GenericImage>,
    url: String,
    management: u16,
    tls: u16,
}

/// Starts a broker that no other test sees. `settings` are lines of `rabbitmq.conf`.
///
/// # Panics
/// When there is no Docker engine, or the broker does not start: with the reason and the remedy.
pub async fn broker_of_its_own(settings: &str) -> OwnBroker {
    broker_of_its_own_with(settings, &[]).await
}

/// The same, with files: where each is in the container, and its text.
///
/// # Panics
/// As [`broker_of_its_own`].
pub async fn broker_of_its_own_with(settings: &str, files: &[(&str, String)]) -> OwnBroker {
    // A container that is started again would get another mapped port: choose a fixed one.
    let [port, management, tls] = free_ports();
    let mut request = image("own")
        .with_mapped_port(port, ContainerPort::Tcp(AMQP))
        .with_mapped_port(management, ContainerPort::Tcp(MANAGEMENT))
        .with_mapped_port(tls, ContainerPort::Tcp(AMQPS));
    for (path, text) in files {
        request = request.with_copy_to(*path, text.clone().into_bytes());
    }
    if !settings.is_empty() {
        let file = format!("{settings}\n").into_bytes();
        request = request.with_copy_to("/etc/rabbitmq/conf.d/90-test.conf", file);
    }
    let container = request.start().await.unwrap_or_else(|error| give_up(&error));
    let own = OwnBroker { container, url: url(port), management, tls };
    answers(&own.url).await;
    own
}

impl OwnBroker {
    /// The broker's URL; the same after a restart.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of its management API, which answers some seconds later than the broker.
    pub fn management_url(&self) -> String {
        format!("http://guest:guest@127.0.0.1:{}", self.management)
    }

    /// `127.0.0.1:port` where it speaks TLS, if it was started so.
    pub fn tls_address(&self) -> String {
        format!("127.0.0.1:{}", self.tls)
    }

    /// A random namespace on it.
    pub fn broker(&self) -> Broker {
        Broker::at(&self.url)
    }

    /// `host:port`, for a proxy in between.
    pub fn address(&self) -> String {
        self.url.trim_start_matches("amqp://guest:guest@").trim_end_matches("/%2f").to_owned()
    }

    /// Runs `rabbitmqctl` in the container and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let ran = rabbitmq(&self.container, "rabbitmqctl", arguments).await;
        ran.unwrap_or_else(|said| panic!("{arguments:?}: {said}"))
    }

    /// Stops the broker in good order.
    pub async fn stop(&self) {
        self.ctl(&["stop_app"]).await;
    }

    /// Starts a stopped broker and waits until it answers.
    pub async fn start(&self) {
        self.ctl(&["start_app"]).await;
        answers(&self.url).await;
    }

    /// Kills the broker's process; [`OwnBroker::revive`] starts it again with what it had on disk.
    ///
    /// # Panics
    /// When Docker does not do it.
    pub async fn kill(&self) {
        self.container.stop_with_timeout(Some(0)).await.expect("docker kills the broker");
    }

    /// Starts a killed broker and waits until it answers.
    ///
    /// # Panics
    /// When Docker does not do it.
    pub async fn revive(&self) {
        self.container.start().await.expect("docker starts the broker");
        answers(&self.url).await;
    }

    /// Freezes the broker: connections stay, nobody answers.
    ///
    /// # Panics
    /// When Docker does not do it.
    pub async fn pause(&self) {
        // Control groups of version 1 give up when a process forks in that moment.
        for _ in 0..20 {
            match self.container.pause().await {
                Ok(()) => return,
                Err(error) if !error.to_string().contains("unable to freeze") => {
                    panic!("docker pauses the broker: {error}")
                }
                Err(_) => time::sleep(Duration::from_millis(50)).await,
            }
        }
        panic!("docker could not freeze the broker in twenty tries");
    }

    /// Ends [`OwnBroker::pause`].
    ///
    /// # Panics
    /// When Docker does not do it.
    pub async fn unpause(&self) {
        self.container.unpause().await.expect("docker unpauses the broker");
    }
}

impl std::fmt::Debug for OwnBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnBroker").field("address", &self.address()).finish_non_exhaustive()
    }
}

/// Starts the shared container, or finds the one that an earlier test started.
pub(super) async fn shared() -> String {
    // Test processes may run side by side: one of them starts it.
    let path = std::env::temp_dir().join("forebay-test-broker.lock");
    let lock = File::create(&path).expect("the folder for temporary files can be written");
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock));
    let _lock = lock.await.expect("no panic").expect("the lock file can be locked");
    let name = format!("forebay-test-{}", image_name().replace([':', '/', '.'], "-"));
    let started =
        image("shared").with_container_name(name).with_reuse(ReuseDirective::Always).start().await;
    let container = started.unwrap_or_else(|error| give_up(&error));
    let port = container.get_host_port_ipv4(AMQP).await.expect("the port is mapped");
    let url = url(port);
    answers(&url).await;
    url
}

/// What one of RabbitMQ's own programs prints in a container; an error is what it said before it
/// failed.
pub(super) async fn rabbitmq(
    container: &ContainerAsync<GenericImage>,
    program: &str,
    arguments: &[&str],
) -> Result<String, String> {
    let command = [program].into_iter().chain(arguments.iter().copied());
    let mut ran = container.exec(ExecCommand::new(command)).await.expect("docker exec");
    let out = ran.stdout_to_vec().await.expect("output of the program");
    let err = ran.stderr_to_vec().await.expect("output of the program");
    let code = ran.exit_code().await.expect("exit code");
    let text = String::from_utf8_lossy(&out).into_owned();
    if code == Some(0) { Ok(text) } else { Err(text + &String::from_utf8_lossy(&err)) }
}

fn image_name() -> String {
    let pinned = IMAGE.trim().to_owned();
    std::env::var("FOREBAY_RABBITMQ_IMAGE").ok().filter(|name| !name.is_empty()).unwrap_or(pinned)
}

pub(super) fn image(label: &str) -> ContainerRequest<GenericImage> {
    let whole = image_name();
    let (name, tag) = whole.rsplit_once(':').unwrap_or((&whole, "latest"));
    GenericImage::new(name, tag)
        .with_exposed_port(ContainerPort::Tcp(AMQP))
        .with_label("forebay.test", label)
        // The data of a test broker needs no disk.
        .with_mount(Mount::tmpfs_mount("/tmp"))
        .with_startup_timeout(PATIENCE)
}

fn url(port: u16) -> String {
    format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
}

/// Below those that the system gives to clients: while a broker is stopped its port stays free. All
/// are bound before any is given up: otherwise they could be the same.
pub(super) fn free_ports<const N: usize>() -> [u16; N] {
    let bind = || TcpListener::bind(("127.0.0.1", fastrand::u16(20_000..32_000)));
    let bound = [(); N].map(|()| {
        let mut tries = std::iter::repeat_with(bind).take(1_000);
        tries.find_map(Result::ok).expect("a free port on loopback")
    });
    bound.map(|listener| listener.local_addr().expect("it is bound").port())
}

/// Waits until the broker at `url` lets us open a channel.
pub(super) async fn answers(url: &str) {
    let config = Config::new(url).expect("a URL made here").access_patience(PATIENCE);
    let link = Link::open(&config, "test readiness");
    let opened = time::timeout(PATIENCE, link.channel(Instant::now() + PATIENCE)).await;
    match opened {
        Ok(Ok(_)) => link.close().await,
        Ok(Err(error)) => panic!("the test broker does not answer: {error}"),
        Err(_) => panic!("the test broker did not answer within 180 s"),
    }
}

pub(super) fn give_up(error: &dyn std::error::Error) -> ! {
    panic!(
        "no broker to test with: AMQP_URL is not set, and no container of image `{}` can be \
         started ({error}). Set AMQP_URL to a RabbitMQ, or start Docker and get the image with \
         docker/rabbitmq/obtain.sh",
        image_name()
    )
}
