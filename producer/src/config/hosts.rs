//! The hosts of a broker's URL.
//! In: the text of `AMQP_URL`. Out: one URL for each host, or what is wrong with which host. Nothing
//! of user and password is ever part of what is wrong.

use std::net::Ipv6Addr;

use lapin::uri::AMQPUri;

const USER_ONCE: &str = "user and password stand once, before the first host, or in each of several \
                         URLs; an @ in them is written %40 and a comma %2c";

const NO_HOST: &str = "a port is not a number from 1 to 65535, or no host follows user and password: \
                       user:password@host:port; an IPv6 address stands in brackets";

/// `amqp://u:p@a,b/v` and `amqp://u:p@a/v,amqp://u:p@b/v` both name two hosts.
pub(super) fn one_url_per_host(text: &str) -> Result<Vec<String>, String> {
    // A host may be called `amqp`.
    let whole = text.replace(",amqp://", "\namqp://").replace(",amqps://", "\namqps://");
    let has_user = |url: &str| url.contains('@');
    if whole.lines().any(has_user) && !whole.lines().all(has_user) {
        // What looks like a URL may be the beginning of a password.
        return Err(USER_ONCE.to_owned());
    }
    let urls: Result<Vec<_>, _> = whole.lines().map(|url| spread(url.trim())).collect();
    Ok(urls?.concat())
}

/// The nodes of one cluster: one user and virtual host for all of them, each of them once.
pub(super) fn check(hosts: &[AMQPUri]) -> Result<(), String> {
    for (place, uri) in hosts.iter().enumerate() {
        let same = |other: &AMQPUri| {
            other.authority.port == uri.authority.port
                && other.authority.host.eq_ignore_ascii_case(&uri.authority.host)
        };
        if hosts[..place].iter().any(same) {
            return Err(format!("it names host `{}` twice", address(uri)));
        }
        let first = &hosts[0];
        if uri.vhost != first.vhost
            || uri.authority.userinfo != first.authority.userinfo
            || uri.scheme != first.scheme
        {
            return Err(format!(
                "hosts `{}` and `{}` have different users, passwords, virtual hosts or schemes, \
                 and have to be nodes of one cluster",
                address(first),
                address(uri)
            ));
        }
    }
    Ok(())
}

/// `host:port`, for messages.
pub(crate) fn address(uri: &AMQPUri) -> String {
    let (host, port) = (&uri.authority.host, uri.authority.port);
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The address between the brackets of a URL with one host, which the parser takes for no host.
pub(super) fn ipv6(url: &str) -> Option<String> {
    let (_, hosts, _) = parts(url.split_once("://")?.1);
    Some(hosts.strip_prefix('[')?.split_once(']')?.0.to_owned())
}

fn spread(url: &str) -> Result<Vec<String>, String> {
    // What it should begin with is said by whoever parses it.
    let Some((scheme, rest)) = url.split_once("://") else { return Ok(vec![url.to_owned()]) };
    let (user, hosts, path) = parts(rest);
    if path.contains('@') {
        // What looks like a host may be the beginning of a password.
        return Err("/ ? # and @ in user or password are written %2f %3f %23 and %40".to_owned());
    }
    if user.contains('@') && user.contains(',') {
        return Err(USER_ONCE.to_owned());
    }
    // Who forgets the host writes user and password in its place.
    let shown = !user.is_empty();
    let user = if user.is_empty() { String::new() } else { format!("{user}@") };
    let one = |host: &str| {
        let host = host.trim();
        let well = host_is_well(host);
        well.map_err(|why| if shown || !host.contains(':') { why } else { NO_HOST.to_owned() })?;
        Ok(format!("{scheme}://{user}{host}{path}"))
    };
    hosts.split(',').map(one).collect()
}

/// User and password, hosts, and all the rest of what follows `://`.
fn parts(rest: &str) -> (&str, &str, &str) {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    (user, hosts, path)
}

fn host_is_well(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(bracketed) => {
            let (name, port) = bracketed
                .split_once(']')
                .ok_or_else(|| format!("`{host}` lacks the closing bracket"))?;
            if name.parse::<Ipv6Addr>().is_err() {
                return Err(format!("`{host}`: only an IPv6 address stands in brackets"));
            }
            let after = || format!("`{host}`: only :port may follow the closing bracket");
            let port = match port.strip_prefix(':') {
                Some(port) => Some(port),
                None if port.is_empty() => None,
                None => return Err(after()),
            };
            (name, port)
        }
        None if host.matches(':').count() > 1 => {
            return Err(format!("`{host}`: an IPv6 address stands in brackets, as [::1]:5672"));
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if name.is_empty() {
        return Err("it names no host, or has a comma too many".to_owned());
    }
    match port.map(str::parse::<u16>) {
        None | Some(Ok(1..)) => Ok(()),
        _ => Err(format!("the port of `{host}` is not a number from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn hosts(url: &str) -> Result<String, String> {
        Config::new(url).map(|config| config.broker()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_way_to_name_hosts_is_understood() {
        for (url, named) in [
            ("amqp://127.0.0.1", "127.0.0.1:5672"),
            ("amqps://a", "a:5671"),
            ("amqp://u:p@a:1,b/v", "a:1, b:5672"),
            ("amqp://u:p@a:1, b:2 /v", "a:1, b:2"),
            ("amqp://u:p@a:1/v,amqp://u:p@b:2/v", "a:1, b:2"),
            ("amqp://u:p@amqp-1,amqp-2,amqps-3/v", "amqp-1:5672, amqp-2:5672, amqps-3:5672"),
            ("amqp://u:p@[::1],[2001:db8::2]:5673/v", "[::1]:5672, [2001:db8::2]:5673"),
            ("amqp://u:a%2cb%40c@a,b", "a:5672, b:5672"),
            ("amqp://a:1,a:2", "a:1, a:2"),
        ] {
            assert_eq!(hosts(url).as_deref(), Ok(named), "{url}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_host_is_told_with_its_name_and_without_the_password() {
        for (url, told) in [
            ("amqp://u:hush@a,", "no host, or has a comma too many"),
            ("amqp://u:hush@a,,b", "no host, or has a comma too many"),
            ("amqp://u:hush@", "no host, or has a comma too many"),
            ("amqp://u:hush@a:1,b:port", "port of `b:port` is not a number from 1 to 65535"),
            ("amqp://u:hush@a:65536", "port of `a:65536`"),
            ("amqp://u:hush@a:0", "port of `a:0`"),
            ("amqp://u:hush@a:", "port of `a:`"),
            ("amqp://u:hush@b,::1", "`::1`: an IPv6 address stands in brackets"),
            ("amqp://u:hush@[::1", "`[::1` lacks the closing bracket"),
            ("amqp://u:hush@[a]", "`[a]`: only an IPv6 address stands in brackets"),
            ("amqp://u:hush@[::1]5672", "only :port may follow the closing bracket"),
            ("amqp://u:hush@a:1,b,A:1", "names host `A:1` twice"),
            ("amqp://u:hush@a,b:5672,b", "names host `b:5672` twice"),
            ("amqp://u:hush@a/v,amqp://u:hush@b/w", "hosts `a:5672` and `b:5672` have different"),
            ("amqp://u:hush@a/v,amqp://x:hush@b/v", "hosts `a:5672` and `b:5672` have different"),
            ("amqp://u:hush@a,amqps://u:hush@b", "hosts `a:5672` and `b:5671` have different"),
            ("amqp://u:hush@a,u:hush@b", "user and password stand once"),
            ("amqp://u:hush", "no host follows user and password"),
            ("amqp://u:hu:sh", "no host follows user and password"),
            ("amqp://u:hush%40rabbit/v", "no host follows user and password"),
            ("amqp://u:hush,amqp://@@a/v", "a comma %2c"),
            ("amqp://u:hush\n@a/v", "a comma %2c"),
            ("amqp://u:hush/x@a", "written %2f"),
        ] {
            let error = hosts(url).unwrap_err();
            assert!(error.contains(told), "{url}: {error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn an_address_in_brackets_is_connected_to() {
        let config = Config::new("amqp://u:p@[::1]:5673/v").unwrap();
        let [uri] = config.hosts.as_slice() else { panic!("one host") };
        // As name resolution wants it.
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("::1", 5673));
    }
}
