// SPDX-License-Identifier: Apache-2.0
//! Reaching the broker: the first address that proves its SPIFFE ID and speaks the control stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use firedoor_front::buffers::ReadAhead;
use firedoor_identity::{
    ClientTls, HandshakeError, IdPattern, Identity, MaterialStore, SpiffeId, VerifiedPeer, connect,
};
use rustls::AlertDescription;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::message::ALPN;

/// For one address: name lookup, connecting and the handshake.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{0}")]
    Failed(String),
    /// Reached and verified, or refused by name: a server without our control stream.
    #[error("{0}")]
    Unsupported(String),
}

/// A verified connection that has agreed on the control stream.
pub(crate) struct Dialled {
    pub(crate) tls: ClientTls<ReadAhead<TcpStream>>,
    pub(crate) peer: VerifiedPeer,
    /// What we connected as.
    pub(crate) identity: Arc<Identity>,
}

/// Try the addresses in their order.
pub(crate) async fn dial(
    addresses: &[String],
    as_id: &SpiffeId,
    expect: &Arc<[IdPattern]>,
    store: &MaterialStore,
) -> Result<Dialled, DialError> {
    let mut errors = Vec::new();
    let mut unsupported = false;
    for address in addresses {
        match timeout(ATTEMPT, attempt(address, as_id, expect, store)).await {
            Ok(Ok(dialled)) => return Ok(dialled),
            Ok(Err(error)) => {
                unsupported |= matches!(error, DialError::Unsupported(_));
                errors.push(format!("{address}: {error}"));
            }
            Err(_) => errors.push(format!("{address}: no answer within {} s", ATTEMPT.as_secs())),
        }
    }
    let errors = errors.join("; ");
    Err(if unsupported { DialError::Unsupported(errors) } else { DialError::Failed(errors) })
}

async fn attempt(
    address: &str,
    as_id: &SpiffeId,
    expect: &Arc<[IdPattern]>,
    store: &MaterialStore,
) -> Result<Dialled, DialError> {
    let identity = store.present().and_then(|material| material.identity(as_id).cloned());
    let identity = identity.ok_or_else(|| DialError::Failed(format!("there is no SVID of {as_id} to connect with")))?;
    let failed = |error: io::Error| DialError::Failed(error.to_string());
    let socket = TcpStream::connect(address).await.map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    let shaken = connect(&identity, expect, &[ALPN], ReadAhead::new(socket)).await;
    let (tls, peer) = shaken.map_err(|error| match no_common_protocol(&error) {
        true => DialError::Unsupported("the server refuses the control stream".to_owned()),
        false => DialError::Failed(error.to_string()),
    })?;
    match tls.get_ref().1.alpn_protocol() {
        Some(ALPN) => Ok(Dialled { tls, peer, identity }),
        _ => Err(DialError::Unsupported("the server does not know the control stream".to_owned())),
    }
}

/// RFC 7301 section 3.2: a server that knows none of the offered protocols says so in an alert.
fn no_common_protocol(error: &HandshakeError) -> bool {
    let HandshakeError::Tls(error) = error else {
        return false;
    };
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(error, Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)))
}
