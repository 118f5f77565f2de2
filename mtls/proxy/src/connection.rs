// SPDX-License-Identifier: Apache-2.0
//! What serving a connection needs, whichever way it goes.

use std::net::SocketAddr;
use std::sync::Arc;

use firedoor_identity::{HandshakeError, Identity, Material, SpiffeId, VerifiedPeer};

use crate::caps::Place;
use crate::capture::routes::{Captured, Routes, still_expected};
use crate::decide::{self, Asked, Input, Verdict};
use crate::draft::Draft;
use crate::http::peers::Peers;
use crate::http::resets::Resets;
use crate::local::Client;
use crate::proxy::Shared;
use crate::records::{Direction, Outcome};
use crate::registry::{Admitted, Basis, Entered, IDENTITY_LOST, Limits, OWN_EXPIRED};
use crate::spec::Spec;

/// ALPN of opaque TCP between sidecars. Peers that offer none are taken too: go-spiffe programs do not.
pub(crate) const ALPN: &[&[u8]] = &[b"firedoor-tcp/1"];
/// How much ciphertext may wait below a slow reader: sixteen records, which leave in one `writev`.
pub(crate) const TLS_BUFFER: usize = 256 << 10;

const TOO_MANY: &str = "too_many_connections";
const TOO_MANY_OF_ONE: &str = "too_many_connections_of_identity";
pub(crate) const HANDSHAKE_CLOSED: &str = "handshake_closed";
pub(crate) const HANDSHAKE_TIMEOUT: &str = "handshake_timeout";

/// Whom a connection counts for: the peer of an inbound one, if it has an identity, the local user of an outbound one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    Peer(SpiffeId),
    User(u32),
    /// All who have no identity together.
    Nobody,
}

/// A connection that was accepted, and its place under the listener's caps, if there was one.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub shared: Arc<Shared>,
    pub spec: Arc<Spec>,
    /// Connections that an outbound HTTP listener shares among its clients.
    pub peers: Arc<Peers>,
    /// What the clients of an HTTP listener may still reset.
    pub resets: Arc<Resets>,
    /// The ways that captured connections of the listener go.
    pub routes: Arc<Routes>,
    /// Of a captured outbound connection to what the directory has.
    pub captured: Option<Captured>,
    pub place: Option<Place<Who>>,
}

/// A verified peer and how long a connection to it may live.
#[derive(Debug, Clone)]
pub(crate) struct Met {
    pub peer: VerifiedPeer,
    pub address: Option<SocketAddr>,
    pub limits: Limits,
}

/// Why a connection is not served.
#[derive(Debug)]
pub(crate) enum Denied {
    Reason(&'static str),
    Verdict(Verdict),
}

impl From<&'static str> for Denied {
    fn from(reason: &'static str) -> Self {
        Denied::Reason(reason)
    }
}

impl Denied {
    pub fn record(&self, draft: Draft) {
        match self {
            Denied::Reason(reason) => draft.deny(reason),
            Denied::Verdict(verdict) => draft.decide(verdict),
        }
    }
}

/// The identity that a connection is made with, out of the material that it is decided on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own<'a> {
    pub material: &'a Material,
    pub identity: &'a Identity,
    /// When it was looked at, Unix seconds: one reading of the clock for all that is asked of one request.
    pub now: i64,
}

impl Accepted {
    /// Find the listener's identity in the present material, if it can still be used.
    pub fn own<'a>(&self, material: Option<&'a Material>) -> Result<Own<'a>, &'static str> {
        let material = material.ok_or(IDENTITY_LOST)?;
        let identity = material.identity(&self.spec.common.as_id).ok_or(IDENTITY_LOST)?;
        let now = self.shared.now();
        if now > identity.deadline() {
            return Err(OWN_EXPIRED);
        }
        Ok(Own { material, identity, now })
    }

    /// The same, after something that took its time.
    pub fn later<'a>(&self, own: Own<'a>) -> Own<'a> {
        Own { now: self.shared.now(), ..own }
    }

    /// Refuse a connection that found the listener full.
    pub fn has_place(&self) -> Result<(), &'static str> {
        self.place.as_ref().map(|_| ()).ok_or(TOO_MANY)
    }

    /// Count the connection for whom it is served for.
    pub fn claim(&mut self, who: Who) -> Result<(), &'static str> {
        let place = self.place.as_mut().ok_or(TOO_MANY)?;
        if place.claim(who) { Ok(()) } else { Err(TOO_MANY_OF_ONE) }
    }

    /// Note who a connection that begins now was made with.
    pub fn met(&self, own: Own<'_>, peer: VerifiedPeer, address: Option<SocketAddr>) -> Met {
        let lifetime = self.spec.common.lifetime_from(own.now);
        let limits = Limits { peer: peer.deadline(), own: own.identity.deadline(), lifetime };
        Met { peer, address, limits }
    }

    /// Decide about a verified peer, and keep a place for the record if there must be one. Return what the registry
    /// keeps of an admitted connection.
    pub fn judge(
        &self,
        own: Own<'_>,
        met: Met,
        client: Option<Arc<Client>>,
        asked: Asked,
        draft: &mut Draft,
    ) -> Result<Admitted, Denied> {
        let (common, direction, now) = (&self.spec.common, self.spec.direction(), own.now);
        let (as_id, peer_id) = (common.as_id.clone(), met.peer.id().clone());
        let (source, destination) = match direction {
            Direction::Inbound => (peer_id, as_id),
            Direction::Outbound => (as_id, peer_id),
        };
        let engine = decide::engine(own.material);
        let captured = self.captured.as_ref().map(|captured| captured.wanted);
        if let Some(wanted) = captured {
            // The way may have been found in an older table than what is decided on.
            still_expected(&engine, wanted, common.service_port, met.peer.id())?;
        }
        let input = Input { source, destination, port: common.service_port, asked };
        let verdict = decide::judge(&engine, direction, &input, now);
        if verdict.outcome == Outcome::Denied {
            return Err(Denied::Verdict(verdict));
        }
        draft.promise(&verdict)?;
        Ok(Admitted {
            direction,
            listener: common.name.clone(),
            basis: Basis::Met { input, peer: Box::new(met.peer) },
            limits: met.limits,
            peer_address: met.address,
            captured,
            client,
            verdict,
            revision: own.material.revision(),
            opened: now,
        })
    }

    /// Decide about a connection with nobody verified at its other end, which audit mode lets pass.
    pub fn pass(
        &self,
        own: Own<'_>,
        reason: &'static str,
        address: Option<SocketAddr>,
        client: Option<Arc<Client>>,
        draft: &mut Draft,
    ) -> Result<Admitted, Denied> {
        let (common, direction) = (&self.spec.common, self.spec.direction());
        let verdict = decide::unmet(&decide::engine(own.material), direction, &common.as_id, reason);
        if verdict.outcome == Outcome::Denied {
            return Err(Denied::Verdict(verdict));
        }
        draft.promise(&verdict)?;
        let lifetime = common.lifetime_from(own.now);
        Ok(Admitted {
            direction,
            listener: common.name.clone(),
            basis: Basis::Unmet { own: common.as_id.clone(), port: common.service_port, reason },
            limits: Limits { peer: i64::MAX, own: own.identity.deadline(), lifetime },
            peer_address: address,
            captured: self.spec.outbound().and_then(|outbound| outbound.captured),
            client,
            verdict,
            revision: own.material.revision(),
            opened: own.now,
        })
    }

    /// Enter an admitted connection in the registry, unless newer material does not admit it.
    pub fn enter(&self, facts: Admitted) -> Result<Entered, Denied> {
        let shared = &self.shared;
        let now = facts.opened;
        let live = shared.registry.enter(facts, now, || shared.store.present());
        match live.cut_reason() {
            Some(reason) => Err(reason.into()),
            None => Ok(live),
        }
    }
}

/// The code that a record carries for a handshake that came to nothing.
pub(crate) fn handshake_reason(error: &HandshakeError) -> &'static str {
    match error {
        HandshakeError::NoCertificate => "no_certificate",
        HandshakeError::Refused(refused) => refused.code.as_str(),
        HandshakeError::Tls(error) => match error.kind() {
            std::io::ErrorKind::UnexpectedEof
            | std::io::ErrorKind::ConnectionReset
            | std::io::ErrorKind::BrokenPipe => HANDSHAKE_CLOSED,
            _ => "handshake_failed",
        },
    }
}
