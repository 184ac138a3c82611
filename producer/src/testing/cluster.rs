//! Three nodes of one RabbitMQ cluster in containers, for a test that takes some of them away.
//! In: a Docker engine. Out: a cluster that answers, and the means to stop, kill and cut off nodes.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use futures_util::future;
use serde::Deserialize;
use testcontainers::bollard::Docker;
use testcontainers::bollard::models::{NetworkConnectRequest, NetworkDisconnectRequest};
use testcontainers::core::ContainerPort;
use testcontainers::core::client::docker_client_instance;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::time::{self, Instant};

use super::Broker;
use super::container::{AMQP, MANAGEMENT, PATIENCE, answers, free_ports, give_up, image, rabbitmq};

/// Nodes find each other by name in this kind of network; the default one has no names, so that
/// whoever leaves the first keeps only its published ports.
const PUBLIC: &str = "bridge";
/// An Erlang node that does not answer is given up after about as many seconds, instead of 60.
const TICK: &str = "8";

/// Three nodes of one cluster, that may be stopped, killed and cut off from each other. Nodes are
/// counted from 0.
pub struct Cluster {
    nodes: Vec<Node>,
    network: String,
}

struct Node {
    container: ContainerAsync<GenericImage>,
    name: String,
    port: u16,
    management: u16,
}

/// What the cluster says of a queue.
#[derive(Deserialize)]
struct Told {
    name: String,
    #[serde(default)]
    leader: String,
    #[serde(default)]
    members: Vec<String>,
    #[serde(default)]
    online: Vec<String>,
}

/// Starts a cluster that no other test sees. `settings` are lines of `rabbitmq.conf`. It takes about
/// half a minute.
///
/// # Panics
/// When there is no Docker engine, or the nodes do not find each other: with the reason.
pub async fn cluster(settings: &str) -> Cluster {
    let network = format!("forebay-test-{:08x}", fastrand::u32(..));
    let names = [1, 2, 3].map(|n| format!("{network}-{n}"));
    // All bound before any is given up: nobody gets the port of another.
    let [a, b, c, x, y, z] = free_ports();
    let ports = [(a, x), (b, y), (c, z)];
    let mut file = format!(
        "cluster_formation.peer_discovery_backend = classic_config\n\
         cluster_partition_handling = pause_minority\n{settings}\n"
    );
    for (name, n) in names.iter().zip(1..) {
        file += &format!("cluster_formation.classic_config.nodes.{n} = rabbit@{name}\n");
    }
    let start = names.into_iter().zip(ports).map(|(name, (port, management))| {
        let request = image("cluster")
            .with_container_name(&name)
            .with_hostname(&name)
            .with_network(&network)
            .with_env_var("RABBITMQ_ERLANG_COOKIE", &network)
            .with_env_var(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                format!("+sbwt none +sbwtdcpu none +sbwtdio none -kernel net_ticktime {TICK}"),
            )
            .with_mapped_port(port, ContainerPort::Tcp(AMQP))
            .with_mapped_port(management, ContainerPort::Tcp(MANAGEMENT))
            .with_copy_to("/etc/rabbitmq/conf.d/90-test.conf", file.clone().into_bytes());
        async move {
            let container = request.start().await.unwrap_or_else(|error| give_up(&error));
            connect(PUBLIC, &container).await;
            Node { container, name, port, management }
        }
    });
    let cluster = Cluster { nodes: future::join_all(start).await, network };
    cluster.whole().await;
    cluster
}

impl Cluster {
    /// The URL with all nodes; the same for as long as it lives.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = (0..self.nodes.len()).map(|node| self.address_of(node)).collect();
        format!("amqp://guest:guest@{}/%2f", hosts.join(","))
    }

    /// `host:port` of one node, for a proxy in between.
    pub fn address_of(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[node].port)
    }

    /// The URL of one node's management API.
    pub fn management_url(&self, node: usize) -> String {
        format!("http://guest:guest@127.0.0.1:{}", self.nodes[node].management)
    }

    /// One node's name in the cluster.
    pub fn name_of(&self, node: usize) -> String {
        format!("rabbit@{}", self.nodes[node].name)
    }

    /// A random namespace on it.
    pub fn broker(&self) -> Broker {
        Broker::at(&self.url())
    }

    /// Runs `rabbitmqctl` on a node and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub async fn ctl(&self, node: usize, arguments: &[&str]) -> String {
        self.run(node, "rabbitmqctl", arguments).await
    }

    /// Runs `rabbitmq-queues`, as [`Cluster::ctl`].
    ///
    /// # Panics
    /// When it fails.
    pub async fn queues(&self, node: usize, arguments: &[&str]) -> String {
        self.run(node, "rabbitmq-queues", arguments).await
    }

    async fn run(&self, node: usize, program: &str, arguments: &[&str]) -> String {
        rabbitmq(&self.nodes[node].container, program, arguments).await.unwrap_or_else(|said| {
            panic!("{program} {arguments:?} on node {node}: {said}");
        })
    }

    /// The node that leads a queue, by its full name, as node `asked` knows it.
    ///
    /// # Panics
    /// When `asked` does not answer.
    pub async fn leader_of(&self, queue: &str, asked: usize) -> Option<usize> {
        let told = self.told(queue, asked).await?;
        (0..self.nodes.len()).find(|node| self.name_of(*node) == told.leader)
    }

    /// The nodes that have a member of a quorum queue, as node `asked` knows it.
    ///
    /// # Panics
    /// When `asked` does not answer.
    pub async fn members_of(&self, queue: &str, asked: usize) -> BTreeSet<usize> {
        let members = self.told(queue, asked).await.map(|told| told.members).unwrap_or_default();
        (0..self.nodes.len()).filter(|node| members.contains(&self.name_of(*node))).collect()
    }

    async fn told(&self, queue: &str, asked: usize) -> Option<Told> {
        self.all_told(asked).await.into_iter().find(|told| told.name == queue)
    }

    async fn all_told(&self, asked: usize) -> Vec<Told> {
        let columns = ["name", "leader", "members", "online"];
        let mut arguments = vec!["-q", "--formatter", "json", "list_queues"];
        arguments.extend(columns);
        let text = self.ctl(asked, &arguments).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Stops a node in good order; [`Cluster::start`] starts it again.
    ///
    /// # Panics
    /// When Docker does not do it.
    pub async fn stop(&self, node: usize) {
        let stopped = self.nodes[node].container.stop_with_timeout(Some(30)).await;
        stopped.expect("docker stops the node");
    }

    /// Kills a node's process; [`Cluster::start`] starts it again.
    ///
    /// # Panics
    /// When Docker does not do it.
    pub async fn kill(&self, node: usize) {
        let killed = self.nodes[node].container.stop_with_timeout(Some(0)).await;
        killed.expect("docker kills the node");
    }

    /// Starts a stopped or killed node and waits until it answers.
    ///
    /// # Panics
    /// When Docker does not do it.
    pub async fn start(&self, node: usize) {
        self.nodes[node].container.start().await.expect("docker starts the node");
        answers(&format!("amqp://guest:guest@{}/%2f", self.address_of(node))).await;
    }

    /// Cuts a node off from the others. Clients still reach it.
    ///
    /// # Panics
    /// When Docker does not do it.
    pub async fn isolate(&self, node: usize) {
        let request = NetworkDisconnectRequest {
            container: self.nodes[node].container.id().to_owned(),
            force: None,
        };
        let done = docker().await.disconnect_network(&self.network, request).await;
        done.expect("docker takes the node out of its network");
    }

    /// Ends [`Cluster::isolate`]; [`Cluster::whole`] waits for what comes of it.
    ///
    /// # Panics
    /// When Docker does not do it.
    pub async fn rejoin(&self, node: usize) {
        connect(&self.network, &self.nodes[node].container).await;
    }

    /// Waits until all nodes are there, and all members of all quorum queues.
    ///
    /// # Panics
    /// When that takes longer than 180 s.
    pub async fn whole(&self) {
        let until = Instant::now() + PATIENCE;
        for node in &self.nodes {
            answers(&format!("amqp://guest:guest@127.0.0.1:{}/%2f", node.port)).await;
        }
        for node in 0..self.nodes.len() {
            self.ctl(node, &["await_online_nodes", "3", "--timeout", "90"]).await;
        }
        loop {
            let queues = self.all_told(0).await;
            let away = queues.iter().find(|queue| queue.online.len() < queue.members.len());
            let Some(away) = away else { return };
            assert!(Instant::now() < until, "only {:?} of `{}`", away.online, away.name);
            time::sleep(Duration::from_millis(500)).await;
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("network", &self.network).finish_non_exhaustive()
    }
}

async fn connect(network: &str, container: &ContainerAsync<GenericImage>) {
    let request =
        NetworkConnectRequest { container: container.id().to_owned(), endpoint_config: None };
    let done = docker().await.connect_network(network, request).await;
    done.expect("docker takes the node into the network");
}

async fn docker() -> Docker {
    docker_client_instance().await.expect("docker answered before")
}
