// SPDX-License-Identifier: Apache-2.0
//! Requests of a local client's, each decided on before the peer sees it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use firedoor_identity::Material;
use firedoor_policy::Protocol;
use http::header::HOST;
use http::request::Parts;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;

use super::body::{Body, Ended, Held, Way};
use super::head::{self, Head};
use super::peers::PeerLink;
use super::reply::Refusal;
use super::serve::{Activity, Arrived, Life, Versions, clean, keep, pass, request_body};
use crate::connection::{Accepted, Own};
use crate::decide;
use crate::draft::Draft;
use crate::local::{Client, Refusal as Refused};
use crate::outbound::{adopt, authenticate};
use crate::registry::Entered;
use crate::spec::{Outbound, Side};

/// A local client's connection.
struct Link {
    accepted: Accepted,
    outbound: Outbound,
    client: Arc<Client>,
    activity: Arc<Activity>,
}

/// Serve one accepted connection.
pub(crate) async fn serve(mut accepted: Accepted, fd: OwnedFd) {
    let (shared, spec) = (accepted.shared.clone(), accepted.spec.clone());
    let Side::Outbound(outbound) = &spec.side else { return };
    shared.counters.accepted_outbound.fetch_add(1, Ordering::Relaxed);
    let material = shared.store.present();
    let mut draft = Draft::new(shared.clone(), &spec, material.as_deref());
    let Ok(local) = adopt(&spec, fd) else { return draft.deny(Refused::Gone.code()) };
    let own = accepted.has_place().and_then(|()| accepted.own(material.as_deref()));
    let client = match own {
        Ok(own) => authenticate(&mut accepted, own, &local, &mut draft).await,
        Err(reason) => Err(reason),
    };
    let client = match client {
        Ok(client) => Arc::new(client),
        Err(reason) => {
            local.reset();
            return draft.deny(reason);
        }
    };
    draft.withdraw();
    drop(material);
    let activity = Activity::new();
    let link = Arc::new(Link { accepted, outbound: outbound.clone(), client, activity: activity.clone() });
    let versions = if spec.common.protocol == Protocol::Grpc { Versions::Two } else { Versions::Either };
    let welcome = || link.welcome();
    let life = Life {
        shared: &shared,
        common: &spec.common,
        activity: &activity,
        ends: None,
        process: link.client.process().cloned(),
        welcome: &welcome,
    };
    let serving = link.clone();
    keep(life, versions, local, service_fn(move |request| serving.clone().answer(request))).await;
}

impl Link {
    fn welcome(&self) -> bool {
        let material = self.accepted.shared.store.present();
        let own = self.accepted.own(material.as_deref());
        own.is_ok_and(|own| self.client.check(own.identity.clients()).is_ok())
    }

    /// Answer one request.
    async fn answer(self: Arc<Self>, request: Arrived) -> Result<Response<Body>, Ended> {
        let (shared, spec) = (&self.accepted.shared, &self.accepted.spec);
        let busy = self.activity.begin();
        let material = shared.store.present();
        let mut draft = Draft::new(shared.clone(), spec, material.as_deref());
        draft.client(self.client.id());
        let protocol = spec.common.protocol;
        let (parts, incoming) = request.into_parts();
        let (head, peer, live) = match self.admit(material.as_deref(), &parts, &mut draft).await {
            Ok(admitted) => admitted,
            Err(refusal) => return Ok(refusal.answer(protocol, draft)),
        };
        drop(material);
        draft.decide(&live.verdict());
        let held = Arc::new(Held { shared: shared.clone(), live, _busy: [Some(busy), Some(peer.activity.begin())] });
        let onward = onward(parts, &head, request_body(incoming, &held, Way::Forward));
        pass(protocol, &held, Way::Back, self.send(&peer, onward)).await
    }

    /// Send an admitted request. If its connection closed before a byte of it was sent, another one to the same peer
    /// will do; nothing else is tried again.
    async fn send(&self, peer: &PeerLink, request: Request<Body>) -> Option<Response<Incoming>> {
        let unsent = match peer.send(request).await {
            Ok(response) => return Some(response),
            Err(unsent) => unsent?,
        };
        let material = self.accepted.shared.store.present();
        let own = self.accepted.own(material.as_deref()).ok()?;
        let other = self.accepted.peers.find(&self.accepted, &self.outbound, own).await.ok()?;
        match other.met.peer.id() == peer.met.peer.id() {
            true => other.send(unsent).await.ok(),
            false => None,
        }
    }

    async fn admit(
        &self,
        material: Option<&Material>,
        parts: &Parts,
        draft: &mut Draft,
    ) -> Result<(Head, Arc<PeerLink>, Entered), Refusal> {
        let (accepted, common) = (&self.accepted, &self.accepted.spec.common);
        let own = accepted.own(material).map_err(Refusal::forbidden)?;
        let entitled = self.client.check(own.identity.clients());
        entitled.map_err(|refused| Refusal::forbidden(refused.code()))?;
        let head = head::read(common.protocol, parts)?;
        let peer = self.reach(own, draft).await?;
        draft.peer_address(peer.met.address);
        draft.link(own.material, peer.met.peer.id(), &peer.correlation);
        let admitted = accepted.judge(own, peer.met.clone(), Some(self.client.clone()), head.asked.clone());
        let live = admitted.and_then(|admitted| accepted.enter(admitted)).map_err(Refusal::forbidden)?;
        Ok((head, peer, live))
    }

    /// Find the expected peer, unless no flow could allow any.
    async fn reach(&self, own: Own<'_>, draft: &mut Draft) -> Result<Arc<PeerLink>, Refusal> {
        let (accepted, common) = (&self.accepted, &self.accepted.spec.common);
        let (engine, now) = (decide::engine(own.material), accepted.shared.now());
        let foreseen =
            decide::foresee(&engine, &common.as_id, &self.outbound.expect, common.service_port, common.protocol, now);
        foreseen.map_err(Refusal::forbidden)?;
        accepted.peers.find(accepted, &self.outbound, own).await.map_err(|unreached| {
            draft.peer_address(unreached.address);
            Refusal::unavailable(unreached.reason)
        })
    }
}

/// Write the request anew for the peer.
fn onward(parts: Parts, head: &Head, body: Body) -> Request<Body> {
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method;
    *onward.version_mut() = Version::HTTP_2;
    *onward.uri_mut() = head.uri("https");
    *onward.headers_mut() = clean(parts.headers);
    onward.headers_mut().remove(HOST);
    onward
}
