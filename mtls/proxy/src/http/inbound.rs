// SPDX-License-Identifier: Apache-2.0
//! Requests of a verified peer's, each decided on before the app sees it.

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use firedoor_identity::{Material, VerifiedPeer};
use firedoor_policy::Protocol;
use http::header::{CONNECTION, HOST, TE};
use http::request::Parts;
use http::{HeaderValue, Request, Response, Uri, Version};
use sha2::{Digest, Sha256};

use super::apps::Apps;
use super::body::{Body, Ended, Held, Way};
use super::exchange::{Arrived, clean, pass};
use super::head::{self, Head};
use super::headers;
use super::interim::Between;
use super::reply::Refusal;
use super::resets::Budget;
use super::serve::{Activity, Closed, Life, Versions, Welcome, drain_at};
use crate::connection::{Accepted, Met, Who};
use crate::decide;
use crate::draft::{Draft, correlation};
use crate::inbound::{Peer, meet};
use crate::local::rules::hex;
use crate::registry::Entered;
use crate::relay::PeerStream;
use crate::spec::{Common, Inbound, Side};
use crate::stream;

const HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];
const GRPC: &[&[u8]] = &[b"h2"];
const NO_ALPN: &str = "alpn_mismatch";
/// A client that reset more streams than it may, on this connection or on others.
const TOO_MANY_RESETS: &str = "too_many_resets";

/// A peer's connection.
struct Link {
    accepted: Accepted,
    inbound: Inbound,
    met: Met,
    correlation: Arc<str>,
    xfcc: HeaderValue,
    apps: Apps,
    activity: Arc<Activity>,
}

/// Serve one accepted connection.
pub(crate) async fn serve(mut accepted: Accepted, fd: OwnedFd) {
    let (shared, spec) = (accepted.shared.clone(), accepted.spec.clone());
    let Side::Inbound(inbound) = &spec.side else { return };
    shared.counters.accepted_inbound.fetch_add(1, Ordering::Relaxed);
    let material = shared.store.present();
    let mut draft = Draft::new(shared.clone(), &spec, material.clone());
    let alpn = if spec.common.protocol == Protocol::Grpc { GRPC } else { HTTP };
    let (own, tls, peer) = match Box::pin(meet(&accepted, material.as_deref(), fd, alpn, &mut draft)).await {
        Ok(met) => met,
        Err(reason) => return draft.deny(reason),
    };
    draft.peer(&peer, tls.get_ref().1);
    let budget = accepted.resets.of(Who::Peer(peer.id().clone()));
    let admitted = claim(&mut accepted, &peer, &budget).and_then(|()| versions(spec.common.protocol, &tls));
    let versions = match admitted {
        Ok(versions) => versions,
        Err(reason) => {
            stream::reset(tls.tcp());
            return draft.deny(reason);
        }
    };
    draft.withdraw();
    let link = Arc::new(Link {
        correlation: correlation(tls.get_ref().1),
        xfcc: xfcc(&tls, spec.common.as_id.as_str(), peer.id().as_str()),
        met: accepted.met(own, peer, stream::peer_address(tls.tcp())),
        inbound: inbound.clone(),
        apps: Apps::default(),
        activity: Activity::new(),
        accepted,
    });
    drop(material);
    run(link, versions, tls, budget).await;
}

fn claim(accepted: &mut Accepted, peer: &VerifiedPeer, budget: &Budget) -> Result<(), &'static str> {
    accepted.claim(Who::Peer(peer.id().clone()))?;
    if budget.is_left() { Ok(()) } else { Err(TOO_MANY_RESETS) }
}

async fn run(link: Arc<Link>, versions: Versions, tls: Peer, budget: Budget) {
    let (shared, spec) = (link.accepted.shared.clone(), link.accepted.spec.clone());
    let end = link.met.limits.end();
    let grace =
        shared.store.present().map_or(0, |material| decide::grace(&decide::engine(&material), &spec.common.as_id));
    let welcome = || link.welcome();
    let life = Life {
        shared: &shared,
        common: &spec.common,
        activity: &link.activity,
        ends: Some((drain_at(&link.met.limits, shared.now()), end.saturating_add(grace))),
        process: None,
        welcome: &welcome,
        budget,
    };
    let serving = link.clone();
    if let Closed::Refused(reason) = life.keep(versions, tls, move |arrived| serving.clone().answer(arrived)).await {
        link.draft(&shared.store.present()).deny(reason);
    }
}

/// What was negotiated. A program that negotiates nothing speaks HTTP/1.1.
fn versions(protocol: Protocol, tls: &Peer) -> Result<Versions, &'static str> {
    match tls.get_ref().1.alpn_protocol() {
        Some(b"h2") => Ok(Versions::Two),
        _ if protocol == Protocol::Grpc => Err(NO_ALPN),
        _ => Ok(Versions::One),
    }
}

/// Say who the peer is as Envoy says it.
fn xfcc(tls: &Peer, by: &str, peer: &str) -> HeaderValue {
    let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let hash = leaf.map(|leaf| hex(&Sha256::digest(leaf))).unwrap_or_default();
    // A SPIFFE ID has no character that would need quotes.
    HeaderValue::try_from(format!("By={by};Hash={hash};URI={peer}")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

impl Link {
    fn welcome(&self) -> Welcome {
        let material = self.accepted.shared.store.present();
        let peer = &self.met.peer;
        match self.accepted.own(material.as_deref()) {
            Ok(own) if peer.recheck_outliving(own.identity, own.now).is_err() => Welcome::Gone,
            Ok(own) if peer.is_tainted(own.identity) => Welcome::Leaves,
            Ok(_) => Welcome::Stays,
            Err(_) => Welcome::Gone,
        }
    }

    fn draft(&self, material: &Option<Arc<Material>>) -> Draft {
        let mut draft = Draft::new(self.accepted.shared.clone(), &self.accepted.spec, material.clone());
        draft.peer_address(self.met.address);
        draft.link(&self.met.peer, &self.correlation);
        draft
    }

    /// Answer one request.
    async fn answer(self: Arc<Self>, arrived: Arrived) -> Result<Response<Body>, Ended> {
        let spec = &self.accepted.spec;
        let busy = self.activity.begin();
        let material = self.accepted.shared.store.present();
        let mut draft = self.draft(&material);
        draft.request(arrived.number);
        let protocol = spec.common.protocol;
        let Arrived { parts, body, client, .. } = arrived;
        let (head, live) = match self.admit(material.as_deref(), &parts, &mut draft) {
            Ok(admitted) => admitted,
            Err(refusal) => return Ok(refusal.answer(protocol, draft)),
        };
        drop(material);
        let sender = match self.apps.ready(&spec.common, &self.inbound).await {
            Ok(sender) => sender,
            Err(reason) => return Ok(Refusal::unavailable(reason).answer(protocol, draft)),
        };
        draft.decide(&live.verdict());
        let held = Arc::new(Held { live, _busy: [Some(busy), None] });
        self.activity.admitted(&held);
        let between = Between::new(parts.version, &parts.headers, client);
        let onward = self.onward(parts, head, Body::passing(body, &held, Way::Back, between.gate().cloned()));
        let sending = pin!(self.apps.send(sender, onward, &between, &spec.common, &self.inbound));
        pass(protocol, &held, Way::Forward, &between, sending).await
    }

    fn admit(&self, material: Option<&Material>, parts: &Parts, draft: &mut Draft) -> Result<(Head, Entered), Refusal> {
        let accepted = &self.accepted;
        let own = accepted.own(material).map_err(Refusal::forbidden)?;
        let proof = self.met.peer.recheck(own.identity, own.now);
        proof.map_err(|error| Refusal::forbidden(error.code.as_str()))?;
        let head = read(&accepted.spec.common, parts, draft)?;
        let admitted = accepted.judge(own, self.met.clone(), None, head.asked.clone(), draft);
        let live = admitted.and_then(|admitted| accepted.enter(admitted));
        Ok((head, live.map_err(Refusal::forbidden)?))
    }

    /// Write the request anew for the app.
    fn onward(&self, parts: Parts, head: Head, body: Body) -> Request<Body> {
        let mut onward = Request::new(body);
        *onward.method_mut() = parts.method;
        let mut fields = clean(parts.headers);
        fields.insert(headers::XFCC, self.xfcc.clone());
        if self.accepted.spec.common.protocol == Protocol::Grpc {
            fields.remove(HOST);
            *onward.version_mut() = Version::HTTP_2;
            *onward.uri_mut() = head.uri("http");
        } else {
            headers::one_cookie(&mut fields);
            if fields.contains_key(TE) {
                fields.insert(CONNECTION, HeaderValue::from_static("te"));
            }
            // An authority is made of characters that a field may have.
            if let Ok(host) = HeaderValue::try_from(head.authority.as_str()) {
                fields.insert(HOST, host);
            }
            *onward.uri_mut() = Uri::from(head.target);
        }
        *onward.headers_mut() = fields;
        onward
    }
}

/// Read what a request asks, and note it.
pub(super) fn read(common: &Common, parts: &Parts, draft: &mut Draft) -> Result<Head, Refusal> {
    draft.asked(&head::method(&parts.method), parts.uri.path());
    head::check_size(&parts.headers, common.max_head)?;
    head::read(common.protocol, parts)
}
