//! Signed requests by the Standard Webhooks scheme (standardwebhooks.com).
//! In: a secret, and a message's id, time and body. Out: the value of `webhook-signature`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// What precedes a secret that is written in base64.
const PREFIX: &str = "whsec_";

/// The secret that requests are signed with; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// A secret that cannot be used. It is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSecret {
    /// Nothing in it.
    #[error("the secret is empty")]
    Empty,
    /// `whsec_` and then no base64.
    #[error("the secret begins with `whsec_` but does not go on in base64")]
    NotBase64,
}

impl Secret {
    /// Takes `whsec_` and base64 as the scheme writes it, or any other text as it stands.
    ///
    /// # Errors
    /// [`InvalidSecret`] if it is empty or its base64 is broken.
    pub fn new(text: &str) -> Result<Self, InvalidSecret> {
        let bytes = match text.strip_prefix(PREFIX) {
            Some(encoded) => STANDARD.decode(encoded).map_err(|_| InvalidSecret::NotBase64)?,
            None => text.as_bytes().to_vec(),
        };
        if bytes.is_empty() { Err(InvalidSecret::Empty) } else { Ok(Self(bytes)) }
    }

    /// `v1,` and the signature of `id.seconds.body`.
    pub(crate) fn sign(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(format!("{id}.{seconds}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of the scheme's own libraries.
    #[test]
    fn the_published_example_is_signed_as_published() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature =
            secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_of_another_form_is_taken_as_text() {
        // printf 'id.1.{}' | openssl dgst -sha256 -hmac hush -binary | base64
        let signature = Secret::new("hush").unwrap().sign("id", 1, b"{}");
        assert_eq!(signature, "v1,2h4sqFQxkLOyWJUrdinOlQPTI7ZR+gONf9lUbztrbJE=");
        assert_ne!(
            signature,
            Secret::new("whsec_aHVzaA")
                .map_or_else(|_| String::new(), |secret| secret.sign("id", 1, b"{}"))
        );
    }

    #[test]
    fn a_broken_secret_is_refused_and_none_is_shown() {
        assert_eq!(Secret::new("").unwrap_err(), InvalidSecret::Empty);
        assert_eq!(Secret::new("whsec_").unwrap_err(), InvalidSecret::Empty);
        assert_eq!(Secret::new("whsec_hush!").unwrap_err(), InvalidSecret::NotBase64);
        assert!(!format!("{:?}", Secret::new("hush").unwrap()).contains("hush"));
    }
}
