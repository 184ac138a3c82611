//! Where a worker answers about itself.
//! In: text as it stands in a manifest, a flag or a variable. Out: an address, or "off".

use std::fmt;
use std::str::FromStr;

use forebay_producer::program;

/// Where `forebay-run` answers health checks and scrapes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Listen {
    /// Nowhere.
    Off,
    /// At `host:port`; port 0 means any free one.
    At(String),
}

/// Text that names no address to listen at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is \"{0}\", which is no address to listen at")]
pub struct InvalidListen(String);

impl InvalidListen {
    /// What to write instead.
    pub const REMEDY: &str = "write it as HOST:PORT, for example \"127.0.0.1:9464\", or \"off\"";
}

impl Default for Listen {
    /// `127.0.0.1:9464`.
    fn default() -> Self {
        Self::At("127.0.0.1:9464".to_owned())
    }
}

impl Listen {
    /// Where a program on the same machine asks; `None` if nobody can: it is off, or on any port.
    pub fn asked_at(&self) -> Option<String> {
        match self {
            Self::Off => None,
            Self::At(address) => program::asked_at(address),
        }
    }
}

impl FromStr for Listen {
    type Err = InvalidListen;

    fn from_str(text: &str) -> Result<Self, InvalidListen> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let address = text.rsplit_once(':').filter(|(host, port)| {
            let bare = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
            let six = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let named = match six {
                Some(six) => six.parse::<std::net::Ipv6Addr>().is_ok(),
                None => !host.is_empty() && host.chars().all(bare),
            };
            named && port.chars().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok()
        });
        match address {
            Some(_) => Ok(Self::At(text.to_owned())),
            None => Err(InvalidListen(text.to_owned())),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => f.write_str(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_others_refused() {
        // (text, where it is asked)
        for (text, asked) in [
            ("127.0.0.1:9464", Some("127.0.0.1:9464")),
            ("0.0.0.0:9464", Some("127.0.0.1:9464")),
            ("[::]:80", Some("[::1]:80")),
            ("[::1]:80", Some("[::1]:80")),
            ("localhost:9464", Some("localhost:9464")),
            ("127.0.0.1:0", None),
            ("off", None),
        ] {
            let listen: Listen = text.parse().unwrap();
            assert_eq!(listen.to_string(), text);
            assert_eq!(listen.asked_at().as_deref(), asked, "{text}");
        }
        for text in
            ["", "9464", ":9464", "on", "a:b", "a:65536", "a:+1", "::1:80", "[x]:80", "http://a:1"]
        {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
        assert_eq!(Listen::default().to_string().parse(), Ok(Listen::default()));
    }
}
