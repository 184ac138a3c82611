//! Addresses: how payloads write them, and which of them may be used.
//! In: `Ada <ada@example.org>`, an allow-list. Out: the address with its domain as servers want it;
//! whether the list has it.

use std::fmt;

use lettre::Address;
use lettre::message::Mailbox;

/// Reads `ada@example.org` or `Ada Lovelace <ada@example.org>`, one address.
pub(super) fn mailbox(text: &str) -> Result<Mailbox, String> {
    if text.chars().any(char::is_control) {
        return Err(format!("{text:?} has a line break or another control character"));
    }
    let text = text.trim();
    let (name, bare) = match text.strip_suffix('>').and_then(|rest| rest.rsplit_once('<')) {
        Some((name, bare)) => (unquoted(name.trim()), bare.trim()),
        None => (None, text),
    };
    let wrong = |why: &str| Err(format!("{text:?} is no address: {why}"));
    let Some((user, domain)) = bare.rsplit_once('@') else { return wrong("it has no @") };
    // Quoted names may hold an @ or a > of their own, which not all servers read alike.
    if user.contains(['"', '\\', '@', '<', '>', ',', ';', ':', '(', ')', ' ']) {
        return wrong("what stands before the @ has a character that only quotes would allow");
    }
    let Ok(domain) = idna::domain_to_ascii_strict(domain) else {
        return wrong("what stands after the @ is no domain");
    };
    match Address::new(user, domain) {
        Ok(address) => Ok(Mailbox::new(name, address)),
        Err(error) => wrong(&error.to_string().to_lowercase()),
    }
}

fn unquoted(name: &str) -> Option<String> {
    let bare = name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(name);
    (!bare.is_empty()).then(|| bare.to_owned())
}

/// Which addresses may be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Allowed(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Any,
    Domain(String),
    /// With the dot in front.
    Below(String),
    Address(String),
}

impl Allowed {
    /// Reads `*`, `example.org`, `*.example.org` and `ada@example.org`.
    pub(super) fn new<T: AsRef<str>>(entries: impl IntoIterator<Item = T>) -> Result<Self, String> {
        let patterns = entries.into_iter().map(|entry| Pattern::new(entry.as_ref()));
        patterns.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn has(&self, address: &Address) -> bool {
        self.0.iter().any(|pattern| pattern.matches(address))
    }
}

impl Pattern {
    fn new(entry: &str) -> Result<Self, String> {
        let domain = |text: &str| {
            let wrong = || format!("{entry:?} is neither a domain, nor an address, nor \"*\"");
            let ascii = idna::domain_to_ascii_strict(text).map_err(|_| wrong())?;
            if ascii.is_empty() { Err(wrong()) } else { Ok(ascii) }
        };
        if entry == "*" {
            Ok(Self::Any)
        } else if let Some(above) = entry.strip_prefix("*.") {
            Ok(Self::Below(format!(".{}", domain(above)?)))
        } else if entry.contains('*') {
            Err(format!(
                "{entry:?} has a * that is not a whole name; everybody at a domain is the \
                 domain alone"
            ))
        } else if entry.contains('@') {
            Ok(Self::Address(mailbox(entry)?.email.to_string().to_lowercase()))
        } else {
            Ok(Self::Domain(domain(entry)?))
        }
    }

    fn matches(&self, address: &Address) -> bool {
        match self {
            Self::Any => true,
            Self::Domain(domain) => address.domain() == domain,
            Self::Below(domain) => address.domain().ends_with(domain),
            Self::Address(whole) => address.to_string().to_lowercase() == *whole,
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pattern) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            match pattern {
                Pattern::Any => f.write_str("*"),
                Pattern::Below(domain) => write!(f, "*{domain}"),
                Pattern::Domain(text) | Pattern::Address(text) => f.write_str(text),
            }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_a_name() {
        let cases = [
            ("ada@example.org", None, "ada@example.org"),
            (" Ada <ada@Example.ORG> ", Some("Ada"), "ada@example.org"),
            ("\"Lovelace, Ada\" <ada@example.org>", Some("Lovelace, Ada"), "ada@example.org"),
            ("<ada@example.org>", None, "ada@example.org"),
            ("Ädä <ada@bücher.example>", Some("Ädä"), "ada@xn--bcher-kva.example"),
            ("o'neil+tag@example.org", None, "o'neil+tag@example.org"),
            ("ädä@example.org", None, "ädä@example.org"),
        ];
        for (text, name, address) in cases {
            let read = mailbox(text).unwrap();
            assert_eq!((read.name.as_deref(), read.email.as_ref()), (name, address), "{text}");
        }
    }

    #[test]
    fn what_is_no_single_address_is_refused() {
        for text in [
            "",
            "ada",
            "@example.org",
            "ada@",
            "ada@exa mple.org",
            "ada@example.org, eve@example.com",
            "ada@example.org\r\nBcc: eve@example.com",
            "Ada\n <ada@example.org>",
            "ada@example.org>\r\nRCPT TO:<eve@example.com",
            "\"eve@example.com> \"@example.org",
            "eve@example.com@example.org",
            "Ada <ada@example.org> eve",
            "ada@[127.0.0.1]",
            "ada@-",
        ] {
            assert!(mailbox(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_list_allows_what_it_names_and_nothing_near_it() {
        let cases = [
            ("*", "eve@example.com", true),
            ("example.org", "ada@EXAMPLE.org", true),
            ("example.org", "ada@mail.example.org", false),
            ("example.org", "ada@badexample.org", false),
            ("example.org", "ada@example.org.example.com", false),
            ("*.example.org", "ada@mail.example.org", true),
            ("*.example.org", "ada@example.org", false),
            ("*.example.org", "ada@badexample.org", false),
            ("ada@example.org", "Ada@example.org", true),
            ("ada@example.org", "eve@example.org", false),
            ("bücher.example", "ada@xn--bcher-kva.example", true),
        ];
        for (entry, address, so) in cases {
            let allowed = Allowed::new([entry]).unwrap();
            assert_eq!(allowed.has(&mailbox(address).unwrap().email), so, "{entry} {address}");
        }
        for entry in ["", "exa mple.org", "*example.org", "a@b@c", "*@example.org"] {
            assert!(Allowed::new([entry]).is_err(), "{entry:?}");
        }
    }
}
