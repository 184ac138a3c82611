//! Asks the broker's management API which queues there are.
//! In: `FOREBAY_MANAGEMENT_URL` and the virtual host. Out: the job queues of our namespace, with
//! what AMQP does not tell: how many jobs run now.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use forebay_producer::{Topology, check_queue_name};
use reqwest::{Client, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::exit::Stop;

/// What the API tells about a queue, by its full name on the broker.
pub(crate) type Overview = BTreeMap<String, Counts>;

/// Counts of one queue. They may be five seconds old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Counts {
    pub(crate) messages_ready: u64,
    pub(crate) messages_unacknowledged: u64,
    pub(crate) consumers: u64,
}

/// The API of one broker. Errors name the host, never the credentials.
pub(crate) struct Api {
    client: Client,
    base: Url,
}

impl Api {
    /// Asks nothing yet; each question waits at most `wait`.
    pub(crate) fn new(url: &str, wait: Duration) -> Result<Self, Stop> {
        let base = base(url)?;
        // The one that the AMQP side has too; somebody may have installed it already.
        _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(wait).build();
        let client = client.map_err(|error| Stop::Failed(error.without_url().to_string()))?;
        Ok(Self { client, base })
    }

    /// What stands at a path below `/api`, of which only `columns` are asked for.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        columns: Option<&str>,
    ) -> anyhow::Result<T> {
        let mut url = below(&self.base, path);
        url.set_query(columns.map(|columns| format!("columns={columns}")).as_deref());
        // User and password in the URL become a header there.
        let ask = async { self.client.get(url).send().await?.error_for_status()?.json().await };
        let answer = ask.await.map_err(reqwest::Error::without_url);
        answer.with_context(|| format!("the management API at {} cannot be asked", self.host()))
    }

    /// The address of a path below `/api`, without credentials.
    pub(crate) fn address(&self, path: &[&str]) -> String {
        let mut url = below(&self.base, path);
        // It is http or https, which may have both.
        _ = url.set_username("");
        _ = url.set_password(None);
        url.to_string()
    }

    fn host(&self) -> String {
        let host = self.base.host_str().unwrap_or("?");
        format!("{host}:{}", self.base.port_or_known_default().unwrap_or(0))
    }
}

/// Asks for all queues of the virtual host.
pub(crate) async fn overview(url: &str, vhost: &str, wait: Duration) -> anyhow::Result<Overview> {
    let columns = "name,messages_ready,messages_unacknowledged,consumers";
    let queues: Vec<Described> =
        Api::new(url, wait)?.get(&["queues", vhost], Some(columns)).await?;
    Ok(queues
        .into_iter()
        .map(|queue| {
            let counts = queue.counts();
            (queue.name, counts)
        })
        .collect())
}

/// The job queues of a namespace among all queues of the virtual host.
pub(crate) fn job_queues(overview: &Overview, topology: &Topology) -> Vec<String> {
    let prefix = format!("{}.", topology.namespace());
    let names = overview.keys().filter_map(|name| {
        let name = name.strip_prefix(&prefix)?;
        let name = name.strip_suffix(".dead").unwrap_or(name);
        check_queue_name(name).is_ok().then(|| name.to_owned())
    });
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.dedup();
    names
}

/// A queue as the API describes it; it may leave counts out.
#[derive(Deserialize)]
struct Described {
    name: String,
    messages_ready: Option<u64>,
    messages_unacknowledged: Option<u64>,
    consumers: Option<u64>,
}

impl Described {
    fn counts(&self) -> Counts {
        Counts {
            messages_ready: self.messages_ready.unwrap_or(0),
            messages_unacknowledged: self.messages_unacknowledged.unwrap_or(0),
            consumers: self.consumers.unwrap_or(0),
        }
    }
}

/// Where the API is, without `/api`.
fn base(url: &str) -> Result<Url, Stop> {
    // The URL is not repeated: it may hold a password.
    let unusable = |why: &str| {
        let like = "it looks like http://user:password@host:15672";
        Stop::Usage(format!("FOREBAY_MANAGEMENT_URL cannot be used: {why}; {like}"))
    };
    let url: Url = url.parse().map_err(|_| unusable("it is not a URL"))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(unusable("it does not begin with http:// or https://"));
    }
    if url.cannot_be_a_base() {
        return Err(unusable("it names no host"));
    }
    Ok(url)
}

fn below(base: &Url, path: &[&str]) -> Url {
    let mut url = base.clone();
    url.path_segments_mut()
        .expect("checked when it was made")
        .pop_if_empty()
        .push("api")
        .extend(path);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_virtual_host_is_one_segment_of_the_address() {
        let wait = Duration::from_secs(1);
        let api = Api::new("http://u:p%40ss@rabbit:15672/proxied/", wait).unwrap();
        assert_eq!(api.address(&["queues", "/"]), "http://rabbit:15672/proxied/api/queues/%2F");
        let error = base("rabbit:15672").unwrap_err().to_string();
        assert!(error.contains("http://user:password@host:15672"), "{error}");
    }

    #[test]
    fn job_queues_are_told_from_everything_else() {
        let names = [
            "shop.mail",
            "shop.mail.dead",
            "shop.gone.dead",
            "shop.delay.00",
            "shop.unrouted",
            "shop.events",
            "shop.reply.1",
            "other.mail",
            "shop",
            "amq.gen-1",
        ];
        let overview = names.iter().map(|name| ((*name).to_owned(), Counts::default())).collect();
        let topology = Topology::new("shop").unwrap();
        assert_eq!(job_queues(&overview, &topology), ["gone", "mail"]);
    }
}
