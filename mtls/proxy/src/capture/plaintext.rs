// SPDX-License-Identifier: Apache-2.0
//! Clients without TLS at a port that says `plaintext: audit`: passed to the app while its segment is in audit mode, and
//! recorded as having no identity.
//!
//! One byte is looked at, and left where it is: whether TLS begins. What says nothing for as long as a handshake may take
//! gets the handshake's own refusal.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use firedoor_identity::Material;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::NO_IDENTITY;
use crate::connection::{Accepted, Denied, Who};
use crate::draft::Draft;
use crate::inbound::{APP_UNREACHABLE, connect};
use crate::listener::serve_named;
use crate::registry::Entered;
use crate::relay::{Watched, relay};
use crate::spec::Inbound;
use crate::stream::{self, LocalStream};

/// The first byte of a TLS connection: a record of the handshake (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// Serve one accepted connection, which has its own listener by now.
pub(crate) async fn serve(accepted: Accepted, inbound: &Inbound, fd: OwnedFd) {
    let Ok(tcp) = TcpStream::from_std(fd.into()) else { return };
    let mut first = [0; 1];
    let seen = timeout(accepted.spec.common.handshake_timeout, tcp.peek(&mut first)).await;
    if matches!(seen, Ok(Ok(1))) && first[0] != HANDSHAKE {
        return Box::pin(pass(accepted, inbound, tcp)).await;
    }
    let Ok(tcp) = tcp.into_std() else { return };
    serve_named(accepted, tcp.into()).await;
}

async fn pass(mut accepted: Accepted, inbound: &Inbound, mut tcp: TcpStream) {
    let (shared, spec) = (accepted.shared.clone(), accepted.spec.clone());
    shared.counters.accepted_inbound.fetch_add(1, Ordering::Relaxed);
    let material = shared.store.present();
    let mut draft = Draft::new(shared.clone(), &spec, material.clone());
    match Box::pin(admit(&mut accepted, inbound, material.as_deref(), &tcp, &mut draft)).await {
        Err(denied) => {
            stream::reset(&tcp);
            denied.record(draft);
        }
        Ok((mut app, live)) => {
            draft.decide(&live.verdict());
            let watched = Watched { idle_timeout: spec.common.idle_timeout, process: None };
            relay(&mut app, &mut tcp, &live, &watched).await;
        }
    }
}

async fn admit(
    accepted: &mut Accepted,
    inbound: &Inbound,
    material: Option<&Material>,
    tcp: &TcpStream,
    draft: &mut Draft,
) -> Result<(LocalStream, Entered), Denied> {
    let address = stream::peer_address(tcp);
    draft.peer_address(address);
    stream::tune(tcp).map_err(|_| NO_IDENTITY)?;
    let own = accepted.own(material)?;
    accepted.claim(Who::Nobody)?;
    let admitted = accepted.pass(own, NO_IDENTITY, address, None, draft)?;
    let connecting = timeout(accepted.spec.common.handshake_timeout, connect(inbound)).await;
    let app = connecting.unwrap_or(Err(APP_UNREACHABLE))?;
    let live = accepted.enter(admitted).inspect_err(|_| app.reset())?;
    Ok((app, live))
}
