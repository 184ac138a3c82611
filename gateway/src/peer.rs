//! Whom a request comes from, as far as addresses tell.
//! In: the other end of the connection, what proxies wrote, whose word counts. Out: an address. Pure.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");
/// What one customer of a network gets, in bits.
const SITE: u128 = !0 << 64;

/// Whom a request comes from, for limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// One address for all that the client has.
    pub(crate) client: IpAddr,
    /// It is a proxy of ours, which did not say whom it speaks for.
    pub(crate) is_proxy: bool,
}

impl Peer {
    /// Each proxy adds at the right whom it was asked by, so the first from the right that is no
    /// proxy of ours is the client; what stands left of it, anybody may have written.
    pub(crate) fn of(peer: IpAddr, headers: &HeaderMap, proxies: &[IpNet]) -> Self {
        let mut client = peer.to_canonical();
        let lines = headers.get_all(FORWARDED).iter();
        let lines: Vec<_> = lines.map(|line| line.to_str().unwrap_or("?")).collect();
        let mut hops = lines.iter().rev().flat_map(|line| line.rsplit(','));
        while is_within(client, proxies) {
            let Some(Ok(hop)) = hops.next().map(|hop| hop.trim().parse::<IpAddr>()) else {
                return Self { client: whose(client), is_proxy: true };
            };
            client = hop.to_canonical();
        }
        Self { client: whose(client), is_proxy: false }
    }
}

/// Whether an address is in one of the networks.
pub(crate) fn is_within(address: IpAddr, networks: &[IpNet]) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// One address for all that somebody has: of IPv6 that is a /64.
pub(crate) fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) if !six.is_loopback() => Ipv6Addr::from_bits(six.to_bits() & SITE).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn peer(peer: &str, forwarded: &[&str]) -> Peer {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED, HeaderValue::from_str(line).unwrap());
        }
        let proxies = ["10.0.0.0/8", "fd00::/8", "2001:db8::10/128"];
        let proxies = proxies.map(|network| network.parse().unwrap());
        Peer::of(peer.parse().unwrap(), &headers, &proxies)
    }

    fn of(peer: &str, forwarded: &[&str]) -> String {
        self::peer(peer, forwarded).client.to_string()
    }

    #[test]
    fn a_proxy_of_ours_says_who_it_is_and_nobody_else() {
        for (peer, forwarded, client) in [
            ("203.0.113.9", &[][..], "203.0.113.9"),
            ("203.0.113.9", &["198.51.100.1"], "203.0.113.9"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["9.9.9.9, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["9.9.9.9, 198.51.100.1 , 10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["9.9.9.9", "198.51.100.1", "10.0.0.2"], "198.51.100.1"),
            ("::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("fd00::1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
        ] {
            assert_eq!(of(peer, forwarded), client, "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn a_proxy_that_does_not_say_for_whom_it_speaks_is_known_as_one_however_it_is_listed() {
        for (peer, forwarded, is_proxy) in [
            ("10.0.0.1", &[][..], true),
            ("::ffff:10.0.0.1", &[], true),
            ("2001:db8::10", &[], true),
            ("2001:db8::10", &["unknown"], true),
            ("2001:db8::10", &["10.0.0.2"], true),
            ("2001:db8::10", &["198.51.100.1"], false),
            ("2001:db8::11", &[], false),
            ("203.0.113.9", &["2001:db8::10"], false),
        ] {
            assert_eq!(self::peer(peer, forwarded).is_proxy, is_proxy, "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn a_customer_of_ipv6_is_one_however_many_addresses_it_has() {
        assert_eq!(of("2001:db8:1:2:3:4:5:6", &[]), "2001:db8:1:2::");
        assert_eq!(of("2001:db8:1:2:ffff::1", &[]), "2001:db8:1:2::");
        assert_eq!(of("2001:db8:1:3::1", &[]), "2001:db8:1:3::");
        assert_eq!(of("::1", &[]), "::1");
    }
}
