// SPDX-License-Identifier: Apache-2.0
//! Why a decision table cannot be used. The last good one stays.

use crate::path::PathPatternError;
use firedoor_identity::VerifyError;
use std::net::IpAddr;

/// A table is refused whole: half a policy is another policy.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the decision table has {0} bytes, more than {max}", max = crate::table::MAX_TABLE)]
    TooLarge(usize),
    #[error("the decision table is not a firedoor.policy.v1.Table")]
    Malformed,
    #[error("the decision table is written for version {0} of the engine's input; this engine knows version {known}", known = crate::table::VERSION)]
    UnknownVersion(u64),
    #[error("the decision table's trust domain is not one: {0}")]
    TrustDomain(VerifyError),
    #[error("the decision table has too many {0}")]
    TooMany(&'static str),
    #[error("{0:?} is not a segment's name")]
    SegmentName(String),
    #[error("segment {0} is given twice, or a second segment is the fallback")]
    SegmentTwice(String),
    #[error("segment {segment} has a {field} that this engine does not know")]
    UnknownValue { segment: String, field: &'static str },
    #[error("{owner} has the ID pattern {pattern:?}: {error}")]
    Pattern { owner: String, pattern: String, error: VerifyError },
    #[error("{0:?} is not a flow's name")]
    FlowName(String),
    #[error("flow {0} is given twice")]
    FlowTwice(String),
    #[error("flow {0} has an end with neither a segment nor an ID pattern")]
    EmptySubject(String),
    #[error("flow {flow} names the segment {segment:?}, which the table does not have")]
    UnknownSegment { flow: String, segment: String },
    #[error("flow {flow} has the port {port}")]
    Port { flow: String, port: u32 },
    #[error("flow {flow} has the path pattern {pattern:?}: {error}")]
    PathPattern { flow: String, pattern: String, error: PathPatternError },
    #[error("flow {0} has a grpc action without a service")]
    EmptyService(String),
    #[error("{0:?} is not a service's name")]
    ServiceName(String),
    #[error("service {0} is given twice")]
    ServiceTwice(String),
    #[error("service {0} has an address that is none of 4 or 16 bytes, or an IPv4 address in IPv6")]
    Address(String),
    #[error("{address} at port {port} stands in service {service} and before that")]
    AddressTwice { service: String, address: IpAddr, port: u16 },
    #[error("service {service} has the port {port}")]
    ServicePort { service: String, port: u32 },
    #[error("service {0} expects nobody at a port")]
    EmptyExpectation(String),
    #[error("service {service} has {hint:?}, which is not host:port")]
    Hint { service: String, hint: String },
    #[error("service {0} has a protocol that this engine does not know")]
    Protocol(String),
}

impl TableError {
    /// The stable code, the same as in tests/vectors/policy/tables.json.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "table_too_large",
            Self::Malformed => "table_malformed",
            Self::UnknownVersion(_) => "table_version_unknown",
            Self::TrustDomain(_) => "table_trust_domain",
            Self::TooMany(_) => "table_too_many",
            Self::SegmentName(_) => "segment_name",
            Self::SegmentTwice(_) => "segment_twice",
            Self::UnknownValue { .. } => "segment_value_unknown",
            Self::Pattern { .. } => "id_pattern",
            Self::FlowName(_) => "flow_name",
            Self::FlowTwice(_) => "flow_twice",
            Self::EmptySubject(_) => "subject_empty",
            Self::UnknownSegment { .. } => "segment_unknown",
            Self::Port { .. } => "port",
            Self::PathPattern { .. } => "path_pattern",
            Self::EmptyService(_) => "grpc_service_empty",
            Self::ServiceName(_) => "service_name",
            Self::ServiceTwice(_) => "service_twice",
            Self::Address(_) => "service_address",
            Self::AddressTwice { .. } => "service_address_twice",
            Self::ServicePort { .. } => "service_port",
            Self::EmptyExpectation(_) => "service_expects_nobody",
            Self::Hint { .. } => "service_hint",
            Self::Protocol(_) => "service_protocol_unknown",
        }
    }
}
