//! The keys that tokens are signed with, and whether a token holds.
//! In: a secret, a file or address of a key set, tokens. Out: claims. A key set is read again now
//! and then, and when a token names a key that is not in it.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, errors, get_current_timestamp};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::{self, Instant};
use tracing::{info, warn};

use super::ring;
use crate::refusal::Refusal;

/// The largest token that is looked at; longer ones do not fit into a header anyway.
const LONGEST_TOKEN: usize = 8 * 1024;
/// The largest key set.
const LARGEST_SET: usize = 1024 * 1024;
/// How long an answer of the issuer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// At most so often is a key set read because of an unknown key, or after a failure.
const PAUSE: Duration = Duration::from_secs(10);

type Claims = Map<String, Value>;

/// What is asked of a token besides its signature and its times.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Demands {
    pub(crate) issuer: Option<String>,
    pub(crate) audience: Vec<String>,
    pub(crate) leeway: Duration,
}

/// Where a key set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    File(PathBuf),
    Url(String),
}

/// Everything that tokens are checked with.
#[derive(Debug)]
pub(crate) struct Keys {
    secret: Option<DecodingKey>,
    set: Option<KeySet>,
    demands: Demands,
}

#[derive(Debug)]
struct KeySet {
    source: Source,
    client: reqwest::Client,
    refresh: Duration,
    current: RwLock<Arc<Vec<Key>>>,
    last_try: Mutex<Option<(Instant, bool)>>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

impl Keys {
    pub(crate) fn new(
        secret: Option<&[u8]>,
        set: Option<(Source, Duration)>,
        demands: Demands,
    ) -> Self {
        ring::install();
        let secret = secret.map(DecodingKey::from_secret);
        let set = set.map(|(source, refresh)| KeySet::new(source, refresh));
        Self { secret, set, demands }
    }

    /// The claims of a token, if it was signed with one of our keys and holds now.
    pub(crate) async fn verify(&self, token: &str) -> Result<Claims, Refusal> {
        if token.len() > LONGEST_TOKEN {
            return Err(does_not_hold("it is longer than 8 KiB"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| no_token())?;
        if header.crit.as_ref().is_some_and(|critical| !critical.is_empty()) {
            return Err(does_not_hold("its header demands what is not known here (`crit`)"));
        }
        match (header.alg, &self.secret, &self.set) {
            (Algorithm::HS256, Some(secret), _) => self.read(token, header.alg, secret),
            (Algorithm::HS256, None, _) | (_, _, None) => Err(other_algorithm(header.alg)),
            (_, _, Some(set)) => {
                let keys = set.fitting(&header).await?;
                let mut refused = does_not_hold("none of the issuer's keys fits");
                for key in keys.iter().filter(|key| key.fits(&header)) {
                    match self.read(token, header.alg, &key.key) {
                        Ok(claims) => return Ok(claims),
                        Err(error) => refused = error,
                    }
                }
                Err(refused)
            }
        }
    }

    /// Reads the key set anew from time to time, for ever.
    pub(crate) async fn keep(&self) {
        let Some(set) = &self.set else { return std::future::pending().await };
        loop {
            let wait = if set.refresh().await { set.refresh } else { PAUSE };
            time::sleep(wait).await;
        }
    }

    /// How far clocks may differ.
    pub(crate) fn leeway(&self) -> Duration {
        self.demands.leeway
    }

    /// Why no token can be checked, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        let set = self.set.as_ref().filter(|set| set.current().is_empty())?;
        self.secret.is_none().then(|| format!("no key from {} yet", set.source.name()))
    }

    fn read(
        &self,
        token: &str,
        algorithm: Algorithm,
        key: &DecodingKey,
    ) -> Result<Claims, Refusal> {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.demands.leeway.as_secs();
        validation.validate_nbf = true;
        // An audience in the token is nobody else's business if none is asked for here.
        validation.validate_aud = !self.demands.audience.is_empty();
        if validation.validate_aud {
            validation.set_audience(&self.demands.audience);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        if let Some(issuer) = &self.demands.issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        let read = jsonwebtoken::decode::<Claims>(token, key, &validation);
        read.map(|data| data.claims).map_err(|error| refused(&error))
    }
}

impl KeySet {
    fn new(source: Source, refresh: Duration) -> Self {
        _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(PATIENCE)
            // A key set that moves is a fault of the settings, or an attack.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client with these settings can be made");
        let (current, last_try) = (RwLock::default(), Mutex::new(None));
        Self { source, client, refresh, current, last_try }
    }

    fn current(&self) -> Arc<Vec<Key>> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keys, read again if none of them fits.
    async fn fitting(&self, header: &Header) -> Result<Arc<Vec<Key>>, Refusal> {
        let keys = self.current();
        if keys.iter().any(|key| key.fits(header)) {
            return Ok(keys);
        }
        self.refresh().await;
        let keys = self.current();
        match keys.is_empty() {
            true => Err(Refusal::unavailable("the issuer's keys cannot be read")),
            false => Ok(keys),
        }
    }

    /// Reads the set, unless that was tried a moment ago; whether it was read.
    async fn refresh(&self) -> bool {
        let mut last_try = self.last_try.lock().await;
        if let Some((at, read)) = *last_try
            && at.elapsed() < PAUSE
        {
            return read;
        }
        let read = self.read().await.and_then(|text| parse(&text));
        *last_try = Some((Instant::now(), read.is_ok()));
        match read {
            Ok(keys) => {
                if self.current().is_empty() {
                    info!(keys = keys.len(), source = self.source.name(), "tokens can be checked");
                }
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                true
            }
            Err(error) => {
                let source = self.source.name();
                warn!(error, source, "the key set was not read; those of before still count");
                false
            }
        }
    }

    async fn read(&self) -> Result<Vec<u8>, String> {
        match &self.source {
            Source::File(file) => {
                tokio::fs::read(file).await.map_err(|error| format!("{}: {error}", file.display()))
            }
            Source::Url(url) => self.fetch(url).await,
        }
    }

    async fn fetch(&self, url: &str) -> Result<Vec<u8>, String> {
        let failed = |error: reqwest::Error| chain(&error.without_url());
        let answer = self.client.get(url).send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(format!("the issuer answers {}", answer.status()));
        }
        let mut answer = answer;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST_SET {
                return Err("the key set has more than 1 MiB".to_owned());
            }
        }
        Ok(body)
    }
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::File(file) => file.display().to_string(),
            Self::Url(url) => url.clone(),
        }
    }
}

impl Key {
    fn fits(&self, header: &Header) -> bool {
        let named = match (&header.kid, &self.id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        let usable = self.key.family().algorithms().contains(&header.alg);
        named && usable && self.algorithm.is_none_or(|algorithm| algorithm == header.alg)
    }
}

/// Reads a key set. Keys that are not for signatures, or that nobody here knows, are left out; an
/// issuer may have withdrawn all of them.
fn parse(text: &[u8]) -> Result<Vec<Key>, String> {
    let set: Value = serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"))?;
    let keys = set.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or("no key set: it has no list `keys`")?;
    Ok(keys.iter().filter_map(key).collect())
}

fn key(value: &Value) -> Option<Key> {
    // A secret does not belong into a set of public keys.
    if value.get("kty").and_then(Value::as_str) == Some("oct") {
        return None;
    }
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let algorithm = value.get("alg").and_then(Value::as_str);
    let algorithm = match algorithm.map(str::parse::<Algorithm>) {
        None => None,
        Some(Ok(known)) if ring::ALGORITHMS.contains(&known) => Some(known),
        Some(_) => return None,
    };
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some(Key { id: jwk.common.key_id, algorithm, key })
}

fn no_token() -> Refusal {
    Refusal::unauthenticated("that is no JSON Web Token", "send a token of your issuer")
}

fn does_not_hold(why: &str) -> Refusal {
    Refusal::unauthenticated(format!("the token does not hold: {why}"), "get a new token")
}

fn other_algorithm(algorithm: Algorithm) -> Refusal {
    Refusal::unauthenticated(
        format!("tokens signed with {algorithm:?} are not taken here"),
        "have the issuer use what the gateway's [auth] has a key for",
    )
}

fn refused(error: &errors::Error) -> Refusal {
    use errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidToken
        | ErrorKind::Base64(_)
        | ErrorKind::Json(_)
        | ErrorKind::Utf8(_) => no_token(),
        ErrorKind::InvalidSignature => does_not_hold("its signature is wrong"),
        ErrorKind::ExpiredSignature => {
            does_not_hold(&format!("it has expired; it is {} s now", get_current_timestamp()))
        }
        ErrorKind::ImmatureSignature => does_not_hold("its time has not come (`nbf`)"),
        ErrorKind::InvalidIssuer => does_not_hold("another issuer is trusted here (`iss`)"),
        ErrorKind::InvalidAudience => does_not_hold("it is meant for somebody else (`aud`)"),
        ErrorKind::MissingRequiredClaim(claim) => {
            does_not_hold(&format!("its claim `{claim}` is missing"))
        }
        ErrorKind::InvalidClaimFormat(claim) => {
            does_not_hold(&format!("its claim `{claim}` has the wrong form"))
        }
        _ => does_not_hold("its key and algorithm do not fit"),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests;
