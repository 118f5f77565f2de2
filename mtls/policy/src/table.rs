// SPDX-License-Identifier: Apache-2.0
//! From the serialised table to what the engine looks things up in.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use firedoor_identity::{IdPattern, TrustDomain};
use prost::Message;

use crate::directory::{Directory, Expectation};
use crate::error::TableError;
use crate::flow::{Action, Flow, Subject, Window};
use crate::message;
use crate::path::PathPattern;
use crate::question::Protocol;
use crate::segments::{AuditLoss, Expiry, Mode, Segment, SegmentIndex, Segments, Trust};
use crate::wire::{Fields, Value};

/// The version of the engine's input that this engine knows.
pub const VERSION: u64 = 1;
/// Largest table, in bytes; the cap of one control message.
pub const MAX_TABLE: usize = 64 << 20;
/// Largest single segment, flow or service, in bytes. It bounds the memory that one of them takes while it is decoded.
const MAX_PART: usize = 1 << 20;
const MAX_SEGMENTS: usize = 16_384;
const MAX_FLOWS: usize = 131_072;
const MAX_SERVICES: usize = 16_384;
/// Addresses times ports of all services.
const MAX_ROWS: usize = 262_144;
/// Expected patterns and hints of one port of a service; as many as a listener takes.
const MAX_EXPECT: usize = 64;
const MAX_HINTS: usize = 64;
/// ID patterns, path patterns, methods, authorities and actions of a whole table.
const MAX_ITEMS: usize = 2_000_000;
/// A label of Kubernetes; segment names are host-name labels.
const MAX_SEGMENT_NAME: usize = 63;
const MAX_FLOW_NAME: usize = 253;

/// A table that has passed every check.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) segments: Segments,
    /// In the table's order, but for flows that match nothing.
    pub(crate) flows: Vec<Flow>,
    pub(crate) directory: Directory,
}

/// Read and check a table. Flows come after every segment has been read, whatever their order in the bytes.
pub(crate) fn load(bytes: &[u8]) -> Result<Loaded, TableError> {
    if bytes.len() > MAX_TABLE {
        return Err(TableError::TooLarge(bytes.len()));
    }
    let mut loader = Loader::open(bytes)?;
    for part in parts(bytes, SEGMENTS) {
        loader.segment(part?)?;
    }
    for part in parts(bytes, FLOWS) {
        loader.flow(part?)?;
    }
    for part in parts(bytes, SERVICES) {
        loader.service(part?)?;
    }
    Ok(loader.loaded)
}

// Field numbers of firedoor.policy.v1.Table.
const VERSION_FIELD: u64 = 1;
const TRUST_DOMAIN: u64 = 2;
const SEGMENTS: u64 = 3;
const FLOWS: u64 = 4;
const SERVICES: u64 = 5;

/// The values of one repeated message field, not yet decoded.
fn parts(bytes: &[u8], field: u64) -> impl Iterator<Item = Result<&[u8], TableError>> {
    Fields::of(bytes).filter_map(move |entry| match entry {
        Ok((number, Value::Bytes(part))) if number == field && part.len() > MAX_PART => {
            Some(Err(TableError::TooMany("bytes in one segment, flow or service")))
        }
        Ok((number, Value::Bytes(part))) if number == field => Some(Ok(part)),
        Ok((number, _)) if number == field => Some(Err(TableError::Malformed)),
        Ok(_) => None,
        Err(_) => Some(Err(TableError::Malformed)),
    })
}

struct Loader {
    loaded: Loaded,
    flow_names: HashSet<Arc<str>>,
    service_names: HashSet<Arc<str>>,
    items: usize,
}

impl Loader {
    /// Read version and trust domain.
    fn open(bytes: &[u8]) -> Result<Self, TableError> {
        let (mut version, mut trust_domain) = (0, "");
        for field in Fields::of(bytes) {
            match field.map_err(|_| TableError::Malformed)? {
                (VERSION_FIELD, Value::Varint(value)) => version = value,
                (TRUST_DOMAIN, Value::Bytes(value)) => {
                    trust_domain = std::str::from_utf8(value).map_err(|_| TableError::Malformed)?;
                }
                (VERSION_FIELD | TRUST_DOMAIN, _) => return Err(TableError::Malformed),
                _ => {}
            }
        }
        if version != VERSION {
            return Err(TableError::UnknownVersion(version));
        }
        TrustDomain::parse(trust_domain).map_err(TableError::TrustDomain)?;
        let loaded = Loaded { segments: Segments::new(trust_domain), ..Loaded::default() };
        Ok(Self { loaded, flow_names: HashSet::new(), service_names: HashSet::new(), items: 0 })
    }

    fn count(&mut self, items: usize) -> Result<(), TableError> {
        self.items += items;
        if self.items > MAX_ITEMS { Err(TableError::TooMany("patterns and actions")) } else { Ok(()) }
    }

    fn segment(&mut self, part: &[u8]) -> Result<(), TableError> {
        if self.loaded.segments.len() == MAX_SEGMENTS {
            return Err(TableError::TooMany("segments"));
        }
        let segment = message::Segment::decode(part).map_err(|_| TableError::Malformed)?;
        if !is_segment_name(&segment.name) {
            return Err(TableError::SegmentName(segment.name));
        }
        self.count(segment.members.len())?;
        let members = patterns(&segment.members, || format!("segment {}", segment.name))?;
        let compiled = Segment {
            mode: mode(&segment)?,
            trust: trust(&segment)?,
            audit_loss: audit_loss(&segment)?,
            expiry: expiry(&segment),
            alert: segment.alert,
            name: segment.name.as_str().into(),
        };
        if !self.loaded.segments.add(compiled, members, segment.fallback) {
            return Err(TableError::SegmentTwice(segment.name));
        }
        Ok(())
    }

    fn flow(&mut self, part: &[u8]) -> Result<(), TableError> {
        if self.flow_names.len() == MAX_FLOWS {
            return Err(TableError::TooMany("flows"));
        }
        let flow = message::Flow::decode(part).map_err(|_| TableError::Malformed)?;
        if !is_flow_name(&flow.name) {
            return Err(TableError::FlowName(flow.name));
        }
        let name: Arc<str> = flow.name.as_str().into();
        if !self.flow_names.insert(name.clone()) {
            return Err(TableError::FlowTwice(flow.name));
        }
        let port = u16::try_from(flow.port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| TableError::Port { flow: flow.name.clone(), port: flow.port })?;
        let compiled = Flow {
            name,
            from: self.subject(&flow.name, flow.from.as_ref())?,
            to: self.subject(&flow.name, flow.to.as_ref())?,
            port,
            allow: self.actions(&flow)?,
            window: Window::ALWAYS,
        };
        // A condition of a kind that we do not know may forbid anything, so its flow allows nothing.
        if let Some(window) = window(&flow.conditions) {
            self.loaded.flows.push(Flow { window, ..compiled });
        }
        Ok(())
    }

    fn service(&mut self, part: &[u8]) -> Result<(), TableError> {
        if self.service_names.len() == MAX_SERVICES {
            return Err(TableError::TooMany("services"));
        }
        let service = message::Service::decode(part).map_err(|_| TableError::Malformed)?;
        // By the rule for segments: both are names of Kubernetes.
        if !is_segment_name(&service.name) {
            return Err(TableError::ServiceName(service.name));
        }
        let name: Arc<str> = service.name.as_str().into();
        if !self.service_names.insert(name.clone()) {
            return Err(TableError::ServiceTwice(service.name));
        }
        let addresses = addresses(&service)?;
        for port in &service.ports {
            self.count(1 + port.expect.len() + port.connect.len())?;
            let number = service_port(&service.name, port.port)?;
            let row = Arc::new(expectation(name.clone(), port)?);
            for address in &addresses {
                if self.loaded.directory.len() == MAX_ROWS {
                    return Err(TableError::TooMany("addresses of services"));
                }
                if !self.loaded.directory.add(*address, number, row.clone()) {
                    return Err(TableError::AddressTwice { service: service.name, address: *address, port: number });
                }
            }
        }
        Ok(())
    }

    fn subject(&mut self, flow: &str, subject: Option<&message::Subject>) -> Result<Subject, TableError> {
        let subject = subject.filter(|subject| !subject.segment.is_empty() || !subject.ids.is_empty());
        let subject = subject.ok_or_else(|| TableError::EmptySubject(flow.to_owned()))?;
        self.count(subject.ids.len())?;
        let ids = patterns(&subject.ids, || format!("flow {flow}"))?;
        Ok(Subject { segment: self.segment_index(flow, &subject.segment)?, ids })
    }

    fn segment_index(&self, flow: &str, name: &str) -> Result<Option<SegmentIndex>, TableError> {
        if name.is_empty() {
            return Ok(None);
        }
        let index = self.loaded.segments.named(name);
        let unknown = || TableError::UnknownSegment { flow: flow.to_owned(), segment: name.to_owned() };
        index.ok_or_else(unknown).map(Some)
    }

    fn actions(&mut self, flow: &message::Flow) -> Result<Vec<Action>, TableError> {
        let mut actions = Vec::with_capacity(flow.allow.len());
        for action in &flow.allow {
            // An action of a kind that we do not know matches nothing.
            if let Some(kind) = &action.kind {
                self.count(1 + width(kind))?;
                actions.push(compile_action(&flow.name, kind)?);
            }
        }
        Ok(actions)
    }
}

fn addresses(service: &message::Service) -> Result<Vec<IpAddr>, TableError> {
    let read = |bytes: &Vec<u8>| {
        let four = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
        let address = four.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok();
        // An IPv4 address in IPv6 would be a second spelling of one address.
        address.filter(|address| address.to_canonical() == *address)
    };
    let wrong = || TableError::Address(service.name.clone());
    service.addresses.iter().map(|bytes| read(bytes).ok_or_else(wrong)).collect()
}

fn expectation(service: Arc<str>, port: &message::ServicePort) -> Result<Expectation, TableError> {
    if port.expect.is_empty() {
        return Err(TableError::EmptyExpectation(service.to_string()));
    }
    if port.expect.len() > MAX_EXPECT || port.connect.len() > MAX_HINTS {
        return Err(TableError::TooMany("expected IDs or hints at a port of a service"));
    }
    if let Some(hint) = port.connect.iter().find(|hint| !is_hint(hint)) {
        return Err(TableError::Hint { service: service.to_string(), hint: hint.clone() });
    }
    let protocol = match message::Protocol::try_from(port.protocol) {
        Ok(message::Protocol::Unspecified | message::Protocol::Tcp) => Protocol::Tcp,
        Ok(message::Protocol::Http) => Protocol::Http,
        Ok(message::Protocol::Grpc) => Protocol::Grpc,
        Err(_) => return Err(TableError::Protocol(service.to_string())),
    };
    Ok(Expectation {
        protocol,
        expect: patterns(&port.expect, || format!("service {service}"))?.into(),
        service_port: service_port(&service, port.service_port)?,
        connect: port.connect.clone(),
        service,
    })
}

fn service_port(service: &str, port: u32) -> Result<u16, TableError> {
    let number = u16::try_from(port).ok().filter(|port| *port != 0);
    number.ok_or_else(|| TableError::ServicePort { service: service.to_owned(), port })
}

/// `host:port`; that the host is there is found out by connecting.
fn is_hint(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && host.len() <= 255 && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

fn width(kind: &message::action::Kind) -> usize {
    match kind {
        message::action::Kind::Tcp(_) => 0,
        message::action::Kind::Http(http) => http.methods.len() + http.paths.len() + http.authorities.len(),
        message::action::Kind::Grpc(grpc) => grpc.methods.len(),
    }
}

fn compile_action(flow: &str, kind: &message::action::Kind) -> Result<Action, TableError> {
    Ok(match kind {
        message::action::Kind::Tcp(_) => Action::Tcp,
        message::action::Kind::Http(http) => Action::Http {
            methods: boxed(&http.methods),
            paths: http.paths.iter().map(|pattern| path_pattern(flow, pattern)).collect::<Result<_, _>>()?,
            authorities: boxed(&http.authorities),
        },
        message::action::Kind::Grpc(grpc) if grpc.service.is_empty() => {
            return Err(TableError::EmptyService(flow.to_owned()));
        }
        message::action::Kind::Grpc(grpc) => {
            Action::Grpc { service: grpc.service.as_str().into(), methods: boxed(&grpc.methods) }
        }
    })
}

fn boxed(texts: &[String]) -> Vec<Box<str>> {
    texts.iter().map(|text| text.as_str().into()).collect()
}

fn path_pattern(flow: &str, pattern: &str) -> Result<PathPattern, TableError> {
    PathPattern::parse(pattern).map_err(|error| TableError::PathPattern {
        flow: flow.to_owned(),
        pattern: pattern.to_owned(),
        error,
    })
}

fn patterns(texts: &[String], owner: impl Fn() -> String) -> Result<Vec<IdPattern>, TableError> {
    let parse = |text: &String| {
        IdPattern::parse(text).map_err(|error| TableError::Pattern { owner: owner(), pattern: text.clone(), error })
    };
    texts.iter().map(parse).collect()
}

/// The window in which all conditions hold; None when one is of a kind that we do not know.
fn window(conditions: &[message::Condition]) -> Option<Window> {
    conditions.iter().try_fold(Window::ALWAYS, |window, condition| {
        condition.kind.as_ref().map(|message::condition::Kind::Time(time)| window.and(time))
    })
}

fn unknown(segment: &message::Segment, field: &'static str) -> TableError {
    TableError::UnknownValue { segment: segment.name.clone(), field }
}

fn mode(segment: &message::Segment) -> Result<Mode, TableError> {
    match message::Mode::try_from(segment.mode) {
        Ok(message::Mode::Unspecified | message::Mode::Enforce) => Ok(Mode::Enforce),
        Ok(message::Mode::Audit) => Ok(Mode::Audit),
        Err(_) => Err(unknown(segment, "mode")),
    }
}

fn trust(segment: &message::Segment) -> Result<Trust, TableError> {
    match message::Trust::try_from(segment.trust) {
        Ok(message::Trust::Unspecified | message::Trust::Low) => Ok(Trust::Low),
        Ok(message::Trust::Medium) => Ok(Trust::Medium),
        Ok(message::Trust::High) => Ok(Trust::High),
        Err(_) => Err(unknown(segment, "trust")),
    }
}

fn audit_loss(segment: &message::Segment) -> Result<AuditLoss, TableError> {
    match message::AuditLoss::try_from(segment.audit_loss) {
        Ok(message::AuditLoss::Unspecified | message::AuditLoss::Count) => Ok(AuditLoss::Count),
        Ok(message::AuditLoss::Deny) => Ok(AuditLoss::Deny),
        Err(_) => Err(unknown(segment, "audit_loss")),
    }
}

fn expiry(segment: &message::Segment) -> Expiry {
    match segment.expiry.as_ref().map_or(0, |expiry| expiry.until_revoked_seconds) {
        0 => Expiry::Close,
        seconds => Expiry::UntilRevoked(Duration::from_secs(seconds)),
    }
}

/// `[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?`
fn is_segment_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    name.len() <= MAX_SEGMENT_NAME
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| edge(Some(byte)) || *byte == b'-')
}

/// Flow names stand in records and metrics: printable ASCII without a space.
fn is_flow_name(name: &str) -> bool {
    (1..=MAX_FLOW_NAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}
