//! Files that let us in: issuers we trust, our own certificate, the password.
//! In: paths. Out: what stands in the files now, or a sentence with file, reason and remedy. They
//! are read at each connect, so that what is renewed on disk needs no restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, Error, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

const CA: &str = "AMQP_CA_FILE";
const CERT: &str = "AMQP_CERT_FILE";
const KEY: &str = "AMQP_KEY_FILE";
const PASSWORD: &str = "AMQP_PASSWORD_FILE";
/// No certificate chain, key or password is larger; a device that never ends is not read for ever.
const LARGEST: u64 = 1024 * 1024;

/// Where the files are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// Certificates of the issuers to trust, instead of the machine's.
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate, with its chain.
    pub(crate) cert: Option<PathBuf>,
    /// Its key.
    pub(crate) key: Option<PathBuf>,
    /// The password, in place of the URL's.
    pub(crate) password: Option<PathBuf>,
}

impl Access {
    /// Whether anything here is for TLS alone.
    pub(crate) fn wants_tls(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }

    /// The password in the file, if one is named. A last line break is not part of it.
    pub(crate) fn password(&self) -> Result<Option<String>, String> {
        let Some(file) = &self.password else { return Ok(None) };
        let bytes = read("password file", file, PASSWORD)?;
        let bad = |why| format!("the password file {} {why}", file.display());
        let text = String::from_utf8(bytes)
            .map_err(|_| bad("is not UTF-8; write the password into it as text"))?;
        let line = text.strip_suffix('\n').map_or(&*text, |line| line.trim_end_matches('\r'));
        if line.is_empty() {
            return Err(bad("is empty; write the password into it"));
        }
        if line.contains(['\n', '\0']) {
            return Err(bad("has more than one line; leave nothing in it but the password"));
        }
        Ok(Some(line.to_owned()))
    }

    /// TLS with these files; issuers are the machine's where none are named.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, String> {
        let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions();
        let builder = versions.map_err(|error| error.to_string())?;
        let builder = match &self.ca {
            Some(file) => builder.with_root_certificates(issuers(file)?),
            None => builder.with_platform_verifier().map_err(|error| {
                format!(
                    "this machine has no certificates of issuers to trust ({error}); install \
                     ca-certificates, or name the broker's issuer with {CA}"
                )
            })?,
        };
        let (cert, key) = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) => return Ok(builder.with_no_client_auth()),
            (Some(_), None) => return Err(alone(CERT, KEY)),
            (None, Some(_)) => return Err(alone(KEY, CERT)),
        };
        let (chain, private) = (certificates("client certificate", cert, CERT)?, private_key(key)?);
        builder.with_client_auth_cert(chain, private).map_err(|error| match error {
            Error::InconsistentKeys(_) => format!(
                "the key in {} does not belong to the certificate in {}; take both from one \
                 issue, the certificate's own one first in its file",
                key.display(),
                cert.display()
            ),
            other => format!(
                "the client certificate in {} with the key in {} cannot be used: {other}; have \
                 it issued anew with a key of RSA, ECDSA or Ed25519",
                cert.display(),
                key.display()
            ),
        })
    }

    /// Our own certificate, for those who look at it.
    pub(crate) fn own_certificate(&self) -> Option<CertificateDer<'static>> {
        certificates("client certificate", self.cert.as_ref()?, CERT).ok()?.into_iter().next()
    }
}

fn alone(one: &str, other: &str) -> String {
    format!("{one} is set without {other}; set both, or neither")
}

fn issuers(file: &Path) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for (number, certificate) in (1..).zip(certificates("CA file", file, CA)?) {
        store.add(certificate).map_err(|error| {
            format!(
                "certificate {number} in the CA file {} cannot be used: {error}; remove it or \
                 have it issued anew",
                file.display()
            )
        })?;
    }
    Ok(store)
}

fn certificates(
    what: &str,
    file: &Path,
    variable: &str,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(what, file, variable)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(format!(
            "the {what} {} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----); \
             convert it (openssl x509 -inform der) or correct {variable}",
            file.display()
        )),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&read("key file", file, KEY)?).map_err(|_| {
        format!(
            "the key file {} holds no private key in PEM form without a passphrase (-----BEGIN \
             PRIVATE KEY-----); convert it (openssl pkcs8 -topk8 -nocrypt) or correct {KEY}",
            file.display()
        )
    })
}

fn read(what: &str, file: &Path, variable: &str) -> Result<Vec<u8>, String> {
    let cannot = |why: String| {
        format!("the {what} {} cannot be read: {why}; correct {variable}", file.display())
    };
    let size = fs::metadata(file).map_err(|error| cannot(error.to_string()))?;
    if !size.is_file() || size.len() > LARGEST {
        return Err(cannot("it is no file of at most 1 MiB".to_owned()));
    }
    fs::read(file).map_err(|error| cannot(format!("{error}, for this process's user")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn password(text: &[u8]) -> Result<Option<String>, String> {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, text).unwrap();
        Access { password: Some(file), ..Access::default() }.password()
    }

    #[test]
    fn a_password_is_the_line_in_its_file() {
        for text in ["hush", "hush\n", "hush\r\n"] {
            assert_eq!(password(text.as_bytes()), Ok(Some("hush".to_owned())), "{text:?}");
        }
        assert_eq!(password(b" a b \n"), Ok(Some(" a b ".to_owned())));
        assert_eq!(Access::default().password(), Ok(None));
    }

    #[test]
    fn a_bad_password_file_is_named_and_its_content_is_not_shown() {
        for (text, why) in [
            (&b"\n"[..], "is empty"),
            (b"hush\nhash\n", "more than one line"),
            (b"hush\xff", "not UTF-8"),
        ] {
            let error = password(text).unwrap_err();
            assert!(error.contains(why) && error.contains("/password"), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let nowhere = Access { password: Some("/nowhere/x".into()), ..Access::default() };
        let error = nowhere.password().unwrap_err();
        assert!(error.contains("/nowhere/x") && error.contains(PASSWORD), "{error}");
        let device = Access { password: Some("/dev/zero".into()), ..Access::default() };
        assert!(device.password().unwrap_err().contains("no file"));
    }

    struct Issued {
        folder: TempDir,
    }

    /// A certificate with its key, and the key of another.
    fn issued() -> Issued {
        let folder = TempDir::new().unwrap();
        let write = |name, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let one = rcgen::generate_simple_self_signed(["one".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
        write("one.pem", &one.cert.pem());
        write("one.key", &one.signing_key.serialize_pem());
        write("other.key", &other.signing_key.serialize_pem());
        write("empty.pem", "");
        Issued { folder }
    }

    impl Issued {
        fn refused(&self, ca: Option<&str>, cert: Option<&str>, key: Option<&str>) -> String {
            let [ca, cert, key] = [ca, cert, key].map(|name| Some(self.folder.path().join(name?)));
            Access { ca, cert, key, password: None }.client_config().unwrap_err()
        }
    }

    #[test]
    fn each_fault_of_a_file_names_the_file_and_the_way_out() {
        let files = issued();
        let (ca, cert) = (Some("one.pem"), Some("one.pem"));
        for (refused, words) in [
            (files.refused(Some("no"), None, None), ["/no", "cannot be read", CA]),
            (files.refused(Some("empty.pem"), None, None), ["/empty.pem", "no certificate", CA]),
            (files.refused(ca, cert, None), [CERT, "without", KEY]),
            (files.refused(ca, None, Some("one.key")), [KEY, "without", CERT]),
            (files.refused(ca, cert, Some("no")), ["/no", "cannot be read", KEY]),
            (files.refused(ca, cert, Some("one.pem")), ["/one.pem", "no private key", KEY]),
            (files.refused(ca, cert, Some("other.key")), ["/other.key", "/one.pem", "belong"]),
            (files.refused(ca, Some("one.key"), Some("one.key")), ["/one.key", "no cert", CERT]),
        ] {
            assert!(words.iter().all(|word| refused.contains(word)), "{words:?}: {refused}");
            assert!(!refused.contains('\n'), "{refused}");
        }
    }
}
