// SPDX-License-Identifier: Apache-2.0
//! Requests of a local client's, each decided on before the peer sees it.

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use firedoor_identity::Material;
use firedoor_policy::Protocol;
use http::header::HOST;
use http::request::Parts;
use http::{Request, Response, Version};

use super::body::{Body, Ended, Held, Source, Way};
use super::client::Unsent;
use super::exchange::{Arrived, clean, pass};
use super::head::Head;
use super::inbound::read;
use super::interim::Between;
use super::peers::{PeerLink, Pool};
use super::reply::Refusal;
use super::serve::{Activity, Closed, Life, Versions};
use crate::connection::{Accepted, Own, Who};
use crate::decide::{self, Verdict};
use crate::draft::Draft;
use crate::local::{Client, Refusal as Refused};
use crate::outbound::{adopt, authenticate};
use crate::registry::{Entered, IDENTITY_LOST};
use crate::spec::Spec;

/// A local client's connection.
struct Link {
    accepted: Accepted,
    client: Arc<Client>,
    activity: Arc<Activity>,
    /// The connections of this thread.
    peers: Arc<Pool>,
}

/// Serve one accepted connection.
pub(crate) async fn serve(mut accepted: Accepted, fd: OwnedFd) {
    let (shared, spec) = (accepted.shared.clone(), accepted.spec.clone());
    shared.counters.accepted_outbound.fetch_add(1, Ordering::Relaxed);
    let material = shared.store.present();
    let mut draft = Draft::new(shared.clone(), &spec, material.clone());
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
    let (peers, budget) = (accepted.peers.here(), accepted.resets.of(Who::User(client.id().uid)));
    let link = Arc::new(Link { accepted, client, activity: activity.clone(), peers });
    let versions = if spec.common.protocol == Protocol::Grpc { Versions::Two } else { Versions::Either };
    let welcome = || link.welcome().into();
    let life = Life {
        shared: &shared,
        common: &spec.common,
        activity: &activity,
        ends: None,
        process: link.client.process().cloned(),
        welcome: &welcome,
        budget,
    };
    let serving = link.clone();
    if let Closed::Refused(reason) = life.keep(versions, local, move |arrived| serving.clone().answer(arrived)).await {
        link.draft(&shared.store.present()).deny(reason);
    }
}

impl Link {
    fn welcome(&self) -> bool {
        let material = self.accepted.shared.store.present();
        let own = self.accepted.own(material.as_deref());
        own.is_ok_and(|own| self.client.check(own.identity.clients()).is_ok() && self.way(own).is_ok())
    }

    /// Whom to expect and where, and the connections to them; of a captured connection, as the directory has it now.
    fn way(&self, own: Own<'_>) -> Result<(Arc<Spec>, Arc<Pool>), &'static str> {
        let Some(captured) = &self.accepted.captured else {
            return Ok((self.accepted.spec.clone(), self.peers.clone()));
        };
        let route = captured.route(&decide::engine(own.material), &self.accepted.spec.common)?;
        let peers = route.peers.here();
        Ok((route.spec, peers))
    }

    fn draft(&self, material: &Option<Arc<Material>>) -> Draft {
        let mut draft = Draft::new(self.accepted.shared.clone(), &self.accepted.spec, material.clone());
        draft.client(self.client.id());
        draft
    }

    /// Answer one request.
    async fn answer(self: Arc<Self>, arrived: Arrived) -> Result<Response<Body>, Ended> {
        let spec = &self.accepted.spec;
        let busy = self.activity.begin();
        let material = self.accepted.shared.store.present();
        let mut draft = self.draft(&material);
        let protocol = spec.common.protocol;
        let Arrived { parts, body, client, .. } = arrived;
        let (head, peer, live) = match self.admit(material.as_deref(), &parts, &mut draft).await {
            Ok(admitted) => admitted,
            Err(refusal) => return Ok(refusal.answer(protocol, draft)),
        };
        drop(material);
        let verdict = live.verdict();
        let held = Arc::new(Held { live, _busy: [Some(busy), Some(peer.activity.begin())] });
        self.activity.admitted(&held);
        let between = Between::new(parts.version, &parts.headers, client);
        let onward = onward(parts, &head, Body::passing(body, &held, Way::Forward, between.gate().cloned()));
        // Written when the request has its number, which is before a byte of it leaves.
        let record = Decided { draft: Some(draft), verdict };
        let sending = pin!(self.send(&peer, onward, &between, record));
        pass(protocol, &held, Way::Back, &between, sending).await
    }

    /// Send an admitted request. If its connection closed before a byte of it was sent, another one to the same peer
    /// will do; nothing else is tried again.
    async fn send(
        &self,
        peer: &PeerLink,
        request: Request<Body>,
        between: &Between,
        mut record: Decided,
    ) -> Option<Response<Source>> {
        match peer.two.send(request, between, |number| record.write(number)).await {
            Ok(response) => Some(response),
            // Boxed, as all is that few requests need.
            Err(Unsent(unsent)) => Box::pin(self.send_again(peer, *unsent?, between, record)).await,
        }
    }

    async fn send_again(
        &self,
        peer: &PeerLink,
        unsent: Request<Body>,
        between: &Between,
        mut record: Decided,
    ) -> Option<Response<Source>> {
        let material = self.accepted.shared.store.present();
        let own = self.accepted.own(material.as_deref()).ok()?;
        let (spec, peers) = self.way(own).ok()?;
        let other = peers.find(&self.accepted, spec.outbound()?, own).await.ok()?;
        if other.met.peer.id() != peer.met.peer.id() {
            return None;
        }
        record.moved(&other);
        other.two.send(unsent, between, |number| record.write(number)).await.ok()
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
        let head = read(common, parts, draft)?;
        let peer = self.reach(own, draft).await?;
        let own = accepted.later(own);
        draft.peer_address(peer.met.address);
        draft.link(&peer.met.peer, &peer.correlation);
        let admitted = accepted.judge(own, peer.met.clone(), Some(self.client.clone()), head.asked.clone(), draft);
        let live = admitted.and_then(|admitted| accepted.enter(admitted));
        Ok((head, peer, live.map_err(Refusal::forbidden)?))
    }

    /// Find the expected peer, unless no flow could allow any.
    async fn reach(&self, own: Own<'_>, draft: &mut Draft) -> Result<Arc<PeerLink>, Refusal> {
        let (accepted, common) = (&self.accepted, &self.accepted.spec.common);
        let engine = decide::engine(own.material);
        let (spec, peers) = self.way(own).map_err(Refusal::forbidden)?;
        let outbound = spec.outbound().ok_or_else(|| Refusal::forbidden(IDENTITY_LOST))?;
        let (expect, port) = (&outbound.expect, common.service_port);
        let foreseen = decide::foresee(&engine, &common.as_id, expect, port, common.protocol, own.now);
        foreseen.map_err(Refusal::forbidden)?;
        peers.find(accepted, outbound, own).await.map_err(|unreached| {
            draft.peer_address(unreached.address);
            Refusal::unavailable(unreached.reason)
        })
    }
}

/// The record of an admitted request, which is written when its number on the peer's connection is known.
struct Decided {
    draft: Option<Draft>,
    verdict: Verdict,
}

impl Decided {
    fn write(&mut self, number: u64) {
        if let Some(mut draft) = self.draft.take() {
            draft.request(number);
            draft.decide(&self.verdict);
        }
    }

    /// Note that another connection carries the request.
    fn moved(&mut self, peer: &PeerLink) {
        if let Some(draft) = &mut self.draft {
            draft.peer_address(peer.met.address);
            draft.link(&peer.met.peer, &peer.correlation);
        }
    }
}

impl Drop for Decided {
    fn drop(&mut self) {
        if let Some(draft) = self.draft.take() {
            draft.decide(&self.verdict);
        }
    }
}

/// Write the request anew for the peer.
pub(super) fn onward(parts: Parts, head: &Head, body: Body) -> Request<Body> {
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method;
    *onward.version_mut() = Version::HTTP_2;
    *onward.uri_mut() = head.uri("https");
    *onward.headers_mut() = clean(parts.headers);
    onward.headers_mut().remove(HOST);
    onward
}
