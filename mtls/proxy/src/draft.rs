// SPDX-License-Identifier: Apache-2.0
//! The record of one connection or request while it is being decided on. It is written exactly once: by the decision,
//! or, when the task ends without one, as a denial.

use std::iter;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use firedoor_identity::{Material, SpiffeId, VerifiedPeer};

use crate::decide::{self, Verdict};
use crate::local::rules::hex;
use crate::proxy::Shared;
use crate::records::{ClientId, Correlation, Direction, Outcome, Promise, Record};
use crate::spec::Spec;

/// RFC 5705 label, as both ends know it; the value proves nothing and never leaves the records.
const CORRELATION_LABEL: &[u8] = b"EXPORTER-firedoor-correlation";
/// Reason of a connection whose task ended before it was decided on.
const ABORTED: &str = "aborted";
/// Reason of what cannot be recorded, in a segment that lets nothing pass without its record.
const AUDIT_LOSS: &str = "audit_loss";
/// As much of a path as a record holds, bytes.
const MAX_PATH: usize = 1024;

static NOTHING: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));

/// A record in the making.
#[derive(Debug)]
pub(crate) struct Draft {
    shared: Arc<Shared>,
    /// For the segments of a refusal that came before the engine was asked.
    material: Option<Arc<Material>>,
    ends: Ends,
    promise: Option<Promise>,
    record: Option<Box<Record>>,
}

#[derive(Debug)]
struct Ends {
    own: SpiffeId,
    peer: Option<SpiffeId>,
}

impl Draft {
    pub fn new(shared: Arc<Shared>, spec: &Spec, material: Option<Arc<Material>>) -> Self {
        let (direction, common) = (spec.direction(), &spec.common);
        let empty = || NOTHING.clone();
        let mut record = Record {
            time: Duration::ZERO,
            direction,
            listener: common.name.clone(),
            correlation: Correlation::default(),
            source: empty(),
            source_segment: empty(),
            destination: empty(),
            destination_segment: empty(),
            port: common.service_port,
            protocol: common.protocol.as_str(),
            method: empty(),
            path: empty(),
            decision: Outcome::Denied,
            flow: empty(),
            reason: ABORTED,
            peer_address: None,
            peer_serial: empty(),
            generation: material.as_deref().map_or((0, 0), Material::generation),
            revision: material.as_deref().map_or(0, Material::revision),
            client: None,
            alert: false,
            dns: None,
        };
        match direction {
            Direction::Inbound => record.destination = common.as_id.text(),
            Direction::Outbound => record.source = common.as_id.text(),
        }
        let ends = Ends { own: common.as_id.clone(), peer: None };
        Draft { shared, material, ends, promise: None, record: Some(Box::new(record)) }
    }

    pub fn client(&mut self, client: ClientId) {
        self.edit(|record| record.client = Some(client));
    }

    pub fn peer_address(&mut self, address: Option<SocketAddr>) {
        self.edit(|record| record.peer_address = address);
    }

    /// Note who the peer proved to be, and the value that both ends can derive from this TLS connection.
    pub fn peer<D>(&mut self, peer: &VerifiedPeer, tls: &rustls::ConnectionCommon<D>) {
        self.link(peer, &correlation(tls));
    }

    /// The same, of a connection whose value is known.
    pub fn link(&mut self, peer: &VerifiedPeer, correlation: &Arc<str>) {
        let id = peer.id();
        self.ends.peer = Some(id.clone());
        self.edit(|record| {
            match record.direction {
                Direction::Inbound => record.source = id.text(),
                Direction::Outbound => record.destination = id.text(),
            }
            record.peer_serial = peer.shared_serial();
            record.correlation.link = Some(correlation.clone());
        });
    }

    /// Note which request of its connection this is.
    pub fn request(&mut self, number: u64) {
        self.edit(|record| record.correlation.request = Some(number));
    }

    /// Note what was asked.
    pub fn asked(&mut self, method: &Arc<str>, path: &str) {
        let end = (0..=MAX_PATH.min(path.len())).rev().find(|at| path.is_char_boundary(*at)).unwrap_or(0);
        self.edit(|record| {
            record.method = method.clone();
            record.path = path[..end].into();
        });
    }

    /// Make sure of a place for the record where nothing may pass without one.
    ///
    /// # Errors
    /// The reason's code: there is no room.
    pub fn promise(&mut self, verdict: &Verdict) -> Result<(), &'static str> {
        if !verdict.must_record {
            return Ok(());
        }
        self.promise = Some(self.shared.records.promise().ok_or(AUDIT_LOSS)?);
        Ok(())
    }

    /// Forget the record: the connection asked nothing yet.
    pub fn withdraw(mut self) {
        self.record = None;
    }

    /// Write the record of a refusal.
    pub fn deny(mut self, reason: &'static str) {
        self.edit(|record| record.reason = reason);
    }

    /// Write the record of a verdict.
    pub fn decide(mut self, verdict: &Verdict) {
        let empty = || NOTHING.clone();
        self.edit(|record| {
            record.decision = verdict.outcome;
            record.reason = verdict.reason;
            record.alert = verdict.alert;
            record.flow = verdict.flow.clone().unwrap_or_else(empty);
            record.source_segment = verdict.source_segment.clone().unwrap_or_else(empty);
            record.destination_segment = verdict.destination_segment.clone().unwrap_or_else(empty);
        });
        self.material = None;
    }

    fn edit(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        if let Some(material) = &self.material {
            let engine = decide::engine(material);
            let segment = |id: &SpiffeId| engine.segment_of(id).map(|segment| segment.name.clone());
            record.alert = engine.alerts(iter::once(&self.ends.own).chain(&self.ends.peer));
            let (own, peer) = (segment(&self.ends.own), self.ends.peer.as_ref().and_then(segment));
            let (source, destination) = match record.direction {
                Direction::Inbound => (peer, own),
                Direction::Outbound => (own, peer),
            };
            record.source_segment = source.unwrap_or_else(|| NOTHING.clone());
            record.destination_segment = destination.unwrap_or_else(|| NOTHING.clone());
        }
        record.time = self.shared.store.clock().since_1970();
        match self.promise.take() {
            Some(promise) => promise.push(*record),
            None => self.shared.records.push(*record),
        }
    }
}

/// The value that both ends can derive from a TLS connection.
pub(crate) fn correlation<D>(tls: &rustls::ConnectionCommon<D>) -> Arc<str> {
    let value = tls.export_keying_material([0u8; 16], CORRELATION_LABEL, None);
    value.map(|bytes| hex(&bytes)).unwrap_or_default().into()
}
