// SPDX-License-Identifier: Apache-2.0
//! The record of one connection while it is being decided on. It is written exactly once: by the decision, or, when
//! the task ends without one, as a denial.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use firedoor_identity::{Material, SpiffeId};

use crate::decide::{self, Verdict};
use crate::local::rules::hex;
use crate::proxy::Shared;
use crate::records::{ClientId, Direction, Outcome, Record};
use crate::spec::Spec;

/// RFC 5705 label, as both ends know it; the value proves nothing and never leaves the records.
const CORRELATION_LABEL: &[u8] = b"EXPORTER-firedoor-correlation";
/// Reason of a connection whose task ended before it was decided on.
const ABORTED: &str = "aborted";

/// A record in the making.
#[derive(Debug)]
pub(crate) struct Draft {
    shared: Arc<Shared>,
    record: Option<Record>,
}

impl Draft {
    pub fn new(shared: Arc<Shared>, spec: &Spec, material: Option<&Material>) -> Self {
        let (direction, common) = (spec.direction(), &spec.common);
        let empty: Arc<str> = "".into();
        let mut record = Record {
            time: Duration::ZERO,
            direction,
            listener: common.name.clone(),
            correlation: String::new(),
            source: empty.clone(),
            source_segment: empty.clone(),
            destination: empty.clone(),
            destination_segment: empty.clone(),
            port: common.service_port,
            protocol: common.protocol.as_str(),
            decision: Outcome::Denied,
            flow: empty,
            reason: ABORTED,
            peer_address: None,
            generation: material.map_or((0, 0), Material::generation),
            revision: material.map_or(0, Material::revision),
            client: None,
        };
        let own = (Arc::from(common.as_id.as_str()), segment(material, &common.as_id));
        match direction {
            Direction::Inbound => (record.destination, record.destination_segment) = own,
            Direction::Outbound => (record.source, record.source_segment) = own,
        }
        Draft { shared, record: Some(record) }
    }

    pub fn client(&mut self, client: ClientId) {
        self.edit(|record| record.client = Some(client));
    }

    pub fn peer_address(&mut self, address: Option<SocketAddr>) {
        self.edit(|record| record.peer_address = address);
    }

    /// Note who the peer proved to be, and the value that both ends can derive from this TLS connection.
    pub fn peer<D>(&mut self, material: &Material, id: &SpiffeId, tls: &rustls::ConnectionCommon<D>) {
        self.link(material, id, &correlation(tls));
    }

    /// The same, of a connection whose value is known.
    pub fn link(&mut self, material: &Material, id: &SpiffeId, correlation: &str) {
        self.edit(|record| {
            let other = (Arc::from(id.as_str()), segment(Some(material), id));
            match record.direction {
                Direction::Inbound => (record.source, record.source_segment) = other,
                Direction::Outbound => (record.destination, record.destination_segment) = other,
            }
            record.correlation = correlation.to_owned();
        });
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
        self.edit(|record| {
            record.decision = verdict.outcome;
            record.reason = verdict.reason;
            record.flow = verdict.flow.clone().unwrap_or_default();
            record.source_segment = verdict.source_segment.clone().unwrap_or_default();
            record.destination_segment = verdict.destination_segment.clone().unwrap_or_default();
        });
    }

    fn edit(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.time = self.shared.store.clock().since_1970();
            self.shared.records.push(record);
        }
    }
}

/// The value that both ends can derive from a TLS connection.
pub(crate) fn correlation<D>(tls: &rustls::ConnectionCommon<D>) -> String {
    let value = tls.export_keying_material([0u8; 16], CORRELATION_LABEL, None);
    value.map(|bytes| hex(&bytes)).unwrap_or_default()
}

fn segment(material: Option<&Material>, id: &SpiffeId) -> Arc<str> {
    let engine = material.map(decide::engine);
    engine.and_then(|engine| engine.segment_of(id).map(|segment| segment.name.clone())).unwrap_or_default()
}
