//! Whether settings make sense together and on this machine.
//! In: settings. Out: what was read for them, such as secrets; or every fault at once.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use forebay_producer::check_queue_name;
use ipnet::IpNet;

use super::{Faults, Settings};
use crate::auth::Grants;
use crate::auth::claims::ClaimNames;
use crate::auth::gate::{Gate, Origins};
use crate::auth::keys::{Demands, Keys, Source};
use crate::auth::ticket::Tickets;

/// The shortest secret: as long as what it makes, as RFC 7518 asks for.
const SHORTEST_SECRET: usize = 32;

impl Settings {
    /// Looks whether the gateway would work with these settings: addresses, files, secrets, names.
    /// It changes nothing and asks nobody.
    ///
    /// # Errors
    /// Every fault, with its remedy.
    pub fn check(&self) -> Result<(), Faults> {
        let mut faults = Vec::new();
        _ = self.gate(&mut faults);
        _ = self.proxies(&mut faults);
        self.check_addresses(&mut faults);
        self.check_publish(&mut faults);
        self.check_numbers(&mut faults);
        if let Err(error) = self.config() {
            faults.push(error.to_string());
        }
        if let Some(tls) = &self.tls
            && let Err(error) = crate::tls::acceptor(tls)
        {
            faults.push(error);
        }
        if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
    }

    /// Who is let in. What is wrong goes to `faults`.
    pub(crate) fn gate(&self, faults: &mut Vec<String>) -> Gate {
        let auth = &self.auth;
        let everybody =
            Grants { publish: auth.publish.clone(), read: auth.read.clone(), admin: false };
        let anonymous = self.anonymous.as_ref().map(|anonymous| Grants {
            publish: anonymous.publish.clone(),
            read: anonymous.read.clone(),
            admin: false,
        });
        for (section, grants) in [("auth", Some(&everybody)), ("anonymous", anonymous.as_ref())] {
            if let Some(entry) = grants.and_then(Grants::unreadable) {
                faults.push(format!(
                    "[{section}]: {entry:?} in `read` names no scope; write \"kind:PATTERN\" or \
                     \"channel:PATTERN\""
                ));
            }
        }
        let secret =
            auth.secret_file.as_deref().and_then(|file| read_secret("secret_file", file, faults));
        let shared = auth
            .ticket_key_file
            .as_deref()
            .and_then(|file| read_secret("ticket_key_file", file, faults));
        let source = auth.jwks.as_deref().and_then(|jwks| source(jwks, faults));
        let keyed = auth.secret_file.is_some() || auth.jwks.is_some();
        if !keyed && anonymous.is_none() {
            faults.push(
                "nobody could come in; set secret_file or jwks in [auth], or write [anonymous] to \
                 let in those without a token"
                    .to_owned(),
            );
        }
        let demands = Demands {
            issuer: auth.issuer.clone(),
            audience: auth.audience.clone(),
            leeway: auth.leeway,
        };
        let set = source.map(|source| (source, auth.jwks_refresh));
        Gate {
            keys: keyed.then(|| Keys::new(secret.as_deref(), set, demands)),
            names: ClaimNames {
                owner: auth.owner_claim.clone(),
                grants: auth.grants_claim.clone(),
            },
            everybody,
            anonymous,
            tickets: Tickets::new(shared.as_deref()),
            origins: self.origins(faults),
        }
    }

    fn origins(&self, faults: &mut Vec<String>) -> Origins {
        let Some(listed) = &self.origins else { return Origins::Loopback };
        if listed.iter().any(|origin| origin == "*") {
            return Origins::Any;
        }
        for origin in listed.iter().filter(|origin| !Origins::is_entry(origin)) {
            faults.push(format!(
                "{origin:?} in `origins` is no origin; write it as \"https://app.example.org\", \
                 \"https://*.example.org\", \"null\" or \"*\""
            ));
        }
        Origins::Listed(listed.clone())
    }

    /// Those whose word counts for whom a request comes from.
    pub(crate) fn proxies(&self, faults: &mut Vec<String>) -> Vec<IpNet> {
        let network = |text: &String| {
            let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            if network.is_err() {
                faults.push(format!(
                    "{text:?} in `trusted_proxies` is no address and no network; write it as \
                     \"10.0.0.7\" or \"10.0.0.0/8\""
                ));
            }
            network.ok()
        };
        self.trusted_proxies.iter().filter_map(network).collect()
    }

    fn check_addresses(&self, faults: &mut Vec<String>) {
        match address(&self.listen) {
            None => faults.push(no_address("listen", &self.listen)),
            Some(address) => {
                if !address.ip().is_loopback() && self.tls.is_none() && !self.insecure_http {
                    faults.push(format!(
                        "listen = {:?} lets other machines in, and tokens would pass in the clear; \
                         set cert_file and key_file in [tls], or, if something in front of the \
                         gateway does TLS, insecure_http = true (--insecure-http)",
                        self.listen
                    ));
                }
            }
        }
        let operation = &self.operation.listen;
        if operation != "off" && address(operation).is_none() {
            faults.push(no_address("listen in [operation]", operation) + ", or \"off\"");
        }
    }

    fn check_publish(&self, faults: &mut Vec<String>) {
        for queue in self.publish.queues.iter().chain(self.publish.routes.values()) {
            if let Err(error) = check_queue_name(queue) {
                faults.push(format!("[publish]: {error}; correct it"));
            }
        }
    }

    fn check_numbers(&self, faults: &mut Vec<String>) {
        let limits = &self.limits;
        for (name, rate, burst) in [
            ("messages", limits.messages_per_second, limits.messages_burst),
            ("publishes", limits.publishes_per_second, limits.publishes_burst),
            ("requests", limits.requests_per_second, limits.requests_burst),
        ] {
            if !(rate.is_finite() && rate > 0.0) || burst == 0 {
                faults.push(format!(
                    "[limits]: {name}_per_second = {rate} with {name}_burst = {burst} would let \
                     nothing through; write numbers above 0"
                ));
            }
        }
        for (name, value) in [
            ("max_connections", self.max_connections),
            ("max_connections_per_address", self.per_address()),
            ("subscriptions in [limits]", limits.subscriptions),
            ("connections in [limits]", limits.connections),
            ("readers in [replay]", self.replay.readers),
        ] {
            if value == 0 {
                faults.push(format!("{name} is 0; write a number above it"));
            }
        }
    }
}

/// Where to listen; `localhost` is this machine.
pub(crate) fn address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port.parse().ok()?)),
        None => text.parse().ok(),
    }
}

fn no_address(name: &str, text: &str) -> String {
    format!("{name} = {text:?} is no address to listen at; write it as \"127.0.0.1:8090\"")
}

fn read_secret(name: &str, file: &Path, faults: &mut Vec<String>) -> Option<Vec<u8>> {
    let mut secret = match fs::read(file) {
        Ok(secret) => secret,
        Err(error) => {
            let file = file.display();
            faults.push(format!("{name} in [auth]: {file} cannot be read: {error}; create it"));
            return None;
        }
    };
    while let Some(b'\n' | b'\r') = secret.last() {
        secret.pop();
    }
    if secret.len() < SHORTEST_SECRET {
        let (file, length) = (file.display(), secret.len());
        faults.push(format!(
            "{name} in [auth]: {file} has {length} bytes, {SHORTEST_SECRET} are the least; make one \
             with `openssl rand -hex 32`"
        ));
        return None;
    }
    Some(secret)
}

/// An issuer's address has to be encrypted, or on this machine: who can change the keys on their way
/// can sign any token.
fn source(jwks: &str, faults: &mut Vec<String>) -> Option<Source> {
    let Some((scheme, rest)) = jwks.split_once("://") else {
        return Some(Source::File(jwks.into()));
    };
    let loopback = Origins::Loopback.allow(&format!("http://{}", rest.split('/').next()?));
    if scheme == "https" || (scheme == "http" && loopback) {
        return Some(Source::Url(jwks.to_owned()));
    }
    faults.push(format!("jwks = {jwks:?} in [auth]: write an address with https://, or a file"));
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const SECRET: &str = "0123456789abcdef0123456789abcdef\n";

    fn faults(text: &str) -> Vec<String> {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("secret"), SECRET).unwrap();
        fs::write(folder.path().join("short"), "secret").unwrap();
        let file = folder.path().join("gateway.toml");
        let checked = Settings::parse(text, &file).and_then(|settings| settings.check());
        let prefix = format!("{}/", folder.path().display());
        let faults = checked.err().map_or_else(Vec::new, |faults| faults.0);
        faults.into_iter().map(|fault| fault.replace(&prefix, "")).collect()
    }

    #[test]
    fn settings_that_make_sense_pass() {
        for text in [
            "[anonymous]",
            "auth.secret_file = \"secret\"",
            "listen = \"0.0.0.0:80\"\ninsecure_http = true\n[auth]\nsecret_file = \"secret\"",
            "[auth]\njwks = \"https://issuer/keys\"\naudience = \"forebay\"\nissuer = \"https://i\"",
            "[auth]\njwks = \"http://127.0.0.1:8080/keys\"\naudience = [\"a\", \"b\"]",
            "[anonymous]\n[publish]\nqueues = [\"mail\"]\nroutes = { \"mail.*\" = \"mail\" }",
            "origins = [\"https://a.example\"]\n[anonymous]\n[limits]\nmessage = \"1MB\"\nslow = \"5s\"",
        ] {
            assert_eq!(faults(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_place_and_remedy() {
        for (text, words) in [
            ("", "nobody could come in; set secret_file or jwks"),
            ("lisen = 1", "gateway.toml:1:1: unknown field `lisen`"),
            ("[anonymous]\n[limits]\nmessage = 5", "gateway.toml:3:11: "),
            ("[anonymous]\n[limits]\nmessage = \"5\"", "\"5\" is no size; write it with its unit"),
            ("[anonymous]\n[limits]\nslow = \"5\"", "\"5\" is no duration"),
            ("[anonymous]\n[limits]\nmessages_burst = 0", "would let nothing through"),
            ("[anonymous]\n[limits]\npublishes_per_second = nan", "would let nothing through"),
            ("max_connections = 0\n[anonymous]", "max_connections is 0"),
            ("listen = \"8090\"\n[anonymous]", "is no address to listen at"),
            ("listen = \"0.0.0.0:80\"\n[anonymous]", "tokens would pass in the clear"),
            ("[anonymous]\n[operation]\nlisten = \"on\"", "or \"off\""),
            ("[anonymous]\nread = [\"news\"]", "[anonymous]: \"news\" in `read` names no scope"),
            ("[auth]\nsecret_file = \"missing\"", "secret_file in [auth]: missing cannot be read"),
            ("[auth]\nsecret_file = \"short\"", "short has 6 bytes, 32 are the least"),
            ("[auth]\njwks = \"http://issuer/keys\"", "write an address with https://"),
            ("[auth]\njwks = \"http://localhost.evil/keys\"", "write an address with https://"),
            ("trusted_proxies = [\"proxy\"]\n[anonymous]", "is no address and no network"),
            ("origins = [\"a.example\"]\n[anonymous]", "is no origin"),
            ("[anonymous]\n[publish]\nqueues = [\"A\"]", "[publish]: "),
            ("[anonymous]\n[tls]\ncert_file = \"c\"\nkey_file = \"k\"", "c cannot be read"),
            ("[anonymous]\n[broker]\nurl = \"http://x\"", "the broker's URL cannot be used"),
            ("[anonymous]\n[broker]\ndeclare = \"no\"", "\"no\" is neither \"auto\" nor"),
        ] {
            let faults = faults(text);
            assert_eq!(faults.len(), 1, "{text}: {faults:#?}");
            assert!(faults[0].contains(words), "{text}: {faults:#?}");
        }
        let all = faults("listen = \"x\"\norigins = [\"x\"]\nmax_connections = 0");
        assert_eq!(all.len(), 4, "all at once: {all:#?}");
    }
}
