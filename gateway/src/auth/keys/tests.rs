use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::ring::rand::SystemRandom;
use ::ring::signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use ::ring::{hmac, rsa};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn hs256(claims: &Value) -> String {
    token(&json!({ "alg": "HS256", "typ": "JWT" }), claims, |text| by_secret(SECRET, text))
}

fn by_secret(secret: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text).as_ref().to_vec()
}

fn claims() -> Value {
    json!({ "sub": "ada", "exp": get_current_timestamp() + 60 })
}

fn with(mut claims: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

/// An Ed25519 key pair and its entry in a key set.
fn ed25519(id: &str) -> (Ed25519KeyPair, Value) {
    let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pair.as_ref()).unwrap();
    let x = URL_SAFE_NO_PAD.encode(pair.public_key());
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": id, "x": x, "use": "sig" });
    (pair, jwk)
}

fn eddsa(id: &str, pair: &Ed25519KeyPair) -> String {
    let header = json!({ "alg": "EdDSA", "kid": id });
    token(&header, &claims(), |text| pair.sign(text).as_ref().to_vec())
}

fn rsa_pair() -> (RsaKeyPair, Value) {
    let pem = include_str!("../../../tests/keys/rsa.pem");
    let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let pair = RsaKeyPair::from_pkcs8(&STANDARD.decode(text).unwrap()).unwrap();
    let public: rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
    let [n, e] = [public.n, public.e].map(|part| URL_SAFE_NO_PAD.encode(part));
    (pair, json!({ "kty": "RSA", "kid": "r", "alg": "RS256", "n": n, "e": e }))
}

fn rs256(pair: &RsaKeyPair) -> String {
    token(&json!({ "alg": "RS256", "kid": "r" }), &claims(), |text| {
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).unwrap();
        signature
    })
}

fn file_of(keys: &[Value]) -> (NamedTempFile, Source) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
    let source = Source::File(file.path().to_owned());
    (file, source)
}

fn keys(source: Source) -> Keys {
    Keys::new(Some(SECRET), Some((source, Duration::from_secs(600))), Demands::default())
}

async fn refusal(keys: &Keys, token: &str) -> String {
    keys.verify(token).await.unwrap_err().to_string()
}

#[tokio::test]
async fn tokens_of_each_kind_are_read() {
    let ((ed, ed_jwk), (rsa, rsa_jwk)) = (ed25519("e"), rsa_pair());
    let (_file, source) = file_of(&[json!({ "kty": "unheard-of" }), ed_jwk, rsa_jwk]);
    let keys = keys(source);
    for token in [hs256(&claims()), eddsa("e", &ed), rs256(&rsa)] {
        assert_eq!(keys.verify(&token).await.unwrap()["sub"], "ada");
        let mut forged = token.into_bytes();
        let last = forged.len() - 3;
        forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).unwrap();
        assert!(refusal(&keys, &forged).await.contains("signature is wrong"));
    }
}

#[tokio::test]
async fn what_does_not_hold_is_refused_with_the_reason() {
    let (_file, source) = file_of(&[ed25519("e").1]);
    let keys = keys(source);
    let now = get_current_timestamp();
    let none = token(&json!({ "alg": "none" }), &claims(), |_| Vec::new());
    let critical = json!({ "alg": "HS256", "crit": ["b64"], "b64": false });
    let critical = token(&critical, &claims(), |text| by_secret(SECRET, text));
    let other = token(&json!({ "alg": "HS256" }), &claims(), |text| by_secret(b"other", text));
    for (token, words) in [
        (hs256(&with(claims(), &json!({ "exp": now - 1 }))), "it has expired"),
        (hs256(&json!({ "sub": "ada" })), "claim `exp` is missing"),
        (hs256(&with(claims(), &json!({ "nbf": now + 60 }))), "its time has not come"),
        (other, "its signature is wrong"),
        (none, "no JSON Web Token"),
        (critical, "crit"),
        ("a.b.c".to_owned(), "no JSON Web Token"),
        (String::new(), "no JSON Web Token"),
        ("x".repeat(9_000), "longer than 8 KiB"),
    ] {
        let refusal = refusal(&keys, &token).await;
        assert!(refusal.starts_with("unauthenticated: ") && refusal.contains(words), "{refusal}");
    }
}

#[tokio::test]
async fn a_public_key_is_never_taken_for_a_secret() {
    let (ed, jwk) = ed25519("e");
    let (_file, source) = file_of(&[jwk, json!({ "kty": "oct", "kid": "o", "k": "c2VjcmV0" })]);
    let keys = Keys::new(None, Some((source, Duration::from_secs(600))), Demands::default());
    for secret in [ed.public_key().as_ref(), b"secret"] {
        let header = json!({ "alg": "HS256", "kid": "e" });
        let forged = token(&header, &claims(), |text| by_secret(secret, text));
        assert!(refusal(&keys, &forged).await.contains("HS256 are not taken here"));
    }
}

#[tokio::test]
async fn issuer_and_audience_are_asked_for_if_they_are_set() {
    let demands = Demands {
        issuer: Some("https://issuer".into()),
        audience: vec!["forebay".into()],
        leeway: Duration::ZERO,
    };
    let strict = Keys::new(Some(SECRET), None, demands);
    let right = with(claims(), &json!({ "iss": "https://issuer", "aud": ["x", "forebay"] }));
    assert!(strict.verify(&hs256(&right)).await.is_ok());
    for (claims, words) in [
        (claims(), "is missing"),
        (with(right.clone(), &json!({ "iss": "https://other" })), "another issuer"),
        (with(right, &json!({ "aud": "other" })), "meant for somebody else"),
    ] {
        let refusal = refusal(&strict, &hs256(&claims)).await;
        assert!(refusal.contains(words), "{refusal}");
    }
    let lax = Keys::new(Some(SECRET), None, Demands::default());
    assert!(lax.verify(&hs256(&with(claims(), &json!({ "aud": "other" })))).await.is_ok());
}

/// An issuer whose key set can be changed; how often it was asked.
async fn issuer(set: Arc<RwLock<String>>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let body = set.read().unwrap().clone();
            let mut question = [0; 1024];
            _ = stream.read(&mut question).await;
            let status = if body.is_empty() { "500 Oops" } else { "200 OK" };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            _ = stream.write_all((head + &body).as_bytes()).await;
        }
    });
    (url, asked)
}

#[tokio::test]
async fn a_new_key_of_the_issuer_is_fetched_when_a_token_names_it_but_not_all_the_time() {
    let ((old, old_jwk), (new, new_jwk)) = (ed25519("old"), ed25519("new"));
    let set = |keys: &[&Value]| json!({ "keys": keys }).to_string();
    let current = Arc::new(RwLock::new(set(&[&old_jwk])));
    let (url, asked) = issuer(Arc::clone(&current)).await;
    let keys = keys(Source::Url(url));
    assert!(keys.verify(&eddsa("old", &old)).await.is_ok());
    assert!(keys.verify(&eddsa("old", &old)).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    *current.write().unwrap() = set(&[&old_jwk, &new_jwk]);
    for _ in 0..20 {
        assert!(keys.verify(&eddsa("new", &new)).await.is_err(), "it was asked a moment ago");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    *keys.set.as_ref().unwrap().last_try.lock().await = None;
    assert!(keys.verify(&eddsa("new", &new)).await.is_ok());
}

#[tokio::test]
async fn an_issuer_that_is_away_costs_nobody_the_keys_that_are_known() {
    let (pair, jwk) = ed25519("e");
    let current = Arc::new(RwLock::new(String::new()));
    let (url, _) = issuer(Arc::clone(&current)).await;
    let keys =
        Keys::new(None, Some((Source::Url(url), Duration::from_secs(600))), Demands::default());
    assert!(refusal(&keys, &eddsa("e", &pair)).await.starts_with("unavailable: "));
    assert!(keys.trouble().unwrap().starts_with("no key from http://127.0.0.1"));

    *current.write().unwrap() = json!({ "keys": [jwk] }).to_string();
    *keys.set.as_ref().unwrap().last_try.lock().await = None;
    assert!(keys.verify(&eddsa("e", &pair)).await.is_ok());
    assert_eq!(keys.trouble(), None);

    current.write().unwrap().clear();
    *keys.set.as_ref().unwrap().last_try.lock().await = None;
    assert!(!keys.set.as_ref().unwrap().refresh().await);
    assert!(!keys.set.as_ref().unwrap().refresh().await, "nor was it read a moment later");
    assert!(keys.verify(&eddsa("e", &pair)).await.is_ok());

    json!({ "keys": [] }).to_string().clone_into(&mut current.write().unwrap());
    *keys.set.as_ref().unwrap().last_try.lock().await = None;
    assert!(keys.set.as_ref().unwrap().refresh().await);
    assert!(keys.verify(&eddsa("e", &pair)).await.is_err(), "an issuer may withdraw all its keys");
    assert!(keys.trouble().is_some());
}

#[test]
fn what_is_no_key_set_is_told_from_one_without_keys_for_us() {
    for (text, words) in [("", "no JSON"), ("[]", "no list `keys`")] {
        let error = parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
    for text in [r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AA"},7,null,{}]}"#] {
        assert!(parse(text.as_bytes()).unwrap().is_empty(), "{text}");
    }
}
