//! Asks the broker's management API which queues there are.
//! In: `FOREBAY_MANAGEMENT_URL` and the virtual host. Out: the job queues of our namespace, with
//! what AMQP does not tell: how many jobs run now.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use forebay_producer::{Topology, check_queue_name};
use reqwest::{Client, Url};
use serde::Deserialize;

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

/// Asks for all queues of the virtual host. Errors name the host, never the credentials.
pub(crate) async fn overview(url: &str, vhost: &str, wait: Duration) -> anyhow::Result<Overview> {
    let url = address(url, vhost)?;
    let host =
        format!("{}:{}", url.host_str().unwrap_or("?"), url.port_or_known_default().unwrap_or(0));
    let ask = async {
        // The one that the AMQP side has too; somebody may have installed it already.
        _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(wait).build()?;
        // User and password in the URL become a header there.
        client.get(url).send().await?.error_for_status()?.json::<Vec<Described>>().await
    };
    let queues = ask.await.map_err(reqwest::Error::without_url);
    let queues = queues.with_context(|| format!("the management API at {host} cannot be asked"))?;
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

/// The virtual host that an AMQP URL leads to; `/` when it names none.
pub(crate) fn vhost(amqp_url: Option<&str>) -> String {
    let first = amqp_url.and_then(|urls| urls.split(",amqp").next()).unwrap_or_default();
    let path = first.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
    let vhost = path.map_or("", |(_, path)| path.split('?').next().unwrap_or_default());
    if vhost.is_empty() { "/".to_owned() } else { percent_decoded(vhost) }
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

fn address(url: &str, vhost: &str) -> Result<Url, Stop> {
    // The URL is not repeated: it may hold a password.
    let unusable = |why: &str| {
        let like = "it looks like http://user:password@host:15672";
        Stop::Usage(format!("FOREBAY_MANAGEMENT_URL cannot be used: {why}; {like}"))
    };
    let mut url: Url = url.parse().map_err(|_| unusable("it is not a URL"))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(unusable("it does not begin with http:// or https://"));
    }
    url.path_segments_mut()
        .map_err(|()| unusable("it names no host"))?
        .pop_if_empty()
        .extend(["api", "queues", vhost]);
    url.set_query(Some("columns=name,messages_ready,messages_unacknowledged,consumers"));
    Ok(url)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, coded)) = rest.split_once('%') {
        bytes.extend(plain.bytes());
        match coded.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &coded[2..];
            }
            None => {
                bytes.push(b'%');
                rest = coded;
            }
        }
    }
    bytes.extend(rest.bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_virtual_host_comes_from_the_amqp_url() {
        for (url, expected) in [
            (None, "/"),
            (Some("amqp://u:p@a"), "/"),
            (Some("amqp://u:p@a/"), "/"),
            (Some("amqp://u:p@a:1,b:2/%2f"), "/"),
            (Some("amqp://u:p@a/shop%20one?heartbeat=5"), "shop one"),
            (Some("amqp://u:p@a/x,amqp://u:p@b/x"), "x"),
        ] {
            assert_eq!(vhost(url), expected, "{url:?}");
        }
        assert_eq!(percent_decoded("100%,%zz,%C3%A9%"), "100%,%zz,é%");
    }

    #[test]
    fn the_virtual_host_is_one_segment_of_the_address() {
        let url = address("http://u:p%40ss@rabbit:15672/proxied/", "/").unwrap();
        assert_eq!(url.path(), "/proxied/api/queues/%2F");
        let error = address("rabbit:15672", "/").unwrap_err().to_string();
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
