//! A connection as the client library gives it, for measurements.
//! In: a configuration. Out: the first host's connection that comes about, dialled as ours but
//! neither supervised nor sieved, and on the caller's runtime.

use async_rs::TokioRuntime;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use tokio::runtime::Handle;

use super::fault::Fault;
use super::tls;
use crate::access::Access;
use crate::config::Config;

/// Connects once; nothing is mended when the connection ends.
///
/// # Errors
/// [`Fault`] of the last host, when none lets us in.
pub async fn connect(config: &Config, name: &str) -> Result<Connection, Fault> {
    let mut last = Fault::Setup("the URL names no host".to_owned());
    for uri in &config.hosts {
        match open(uri.clone(), &config.access, name).await {
            Ok(connection) => return Ok(connection),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

async fn open(mut uri: AMQPUri, access: &Access, name: &str) -> Result<Connection, Fault> {
    if let Some(password) = access.password().map_err(Fault::Setup)? {
        uri.authority.userinfo.password = password;
    }
    let runtime = TokioRuntime::tokio_with_handle(Handle::current());
    let (files, own) = (access.clone(), runtime.clone());
    let socket = async move |uri: AMQPUri, _| {
        let dialled = tls::dial(&uri, &files, &own).await;
        dialled.map_err(|fault| std::io::Error::other(fault).into())
    };
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let connected = Connection::connector(uri, runtime, socket, properties).await;
    connected.map_err(|error| Fault::Connection(error.to_string()))
}
