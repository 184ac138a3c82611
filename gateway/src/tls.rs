//! TLS for clients, by rustls with ring.
//! In: a certificate and its key. Out: what takes connections; or what is wrong with the files.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::settings::Tls;

/// Reads the files; they are read once, so a renewed certificate wants a restart.
pub(crate) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, String> {
    let chain = CertificateDer::pem_file_iter(&tls.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(&tls.cert_file, &error, "a certificate with its chain"))?;
    if chain.is_empty() {
        let file = tls.cert_file.display();
        return Err(format!("[tls]: {file} has no certificate; it has to be PEM"));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key_file)
        .map_err(|error| unreadable(&tls.key_file, &error, "a key without a passphrase"))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key);
    let mut config = config.map_err(|error| {
        format!("[tls]: {} does not fit its key: {error}", tls.cert_file.display())
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn unreadable(file: &Path, error: &Error, wanted: &str) -> String {
    let file = file.display();
    format!("[tls]: {file} cannot be read: {error}; it has to be {wanted}, as PEM")
}
