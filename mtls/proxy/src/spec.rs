// SPDX-License-Identifier: Apache-2.0
//! A listener as it is configured, read from JSON. Unknown fields are refused, so that no rule is lost to a typo.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use firedoor_identity::{IdPattern, SpiffeId};
use firedoor_policy::Protocol;
use serde::Deserialize;

use crate::capture::spec::{CaptureInbound, CaptureOutbound, RawCaptureInbound, RawCaptureOutbound};
use crate::local::Clients;
use crate::records::Direction;

/// `sun_path` less its final NUL, unix(7).
const MAX_SOCKET_PATH: usize = 107;
const MAX_EXPECT: usize = 64;
const MAX_ADDRESSES: usize = 64;

/// Why a listener cannot be opened: a code and a sentence for the person who must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ListenError {
    pub code: &'static str,
    pub message: String,
}

impl ListenError {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        ListenError { code, message: message.into() }
    }
}

pub(crate) fn bad(message: impl Into<String>) -> ListenError {
    ListenError::new("bad_listener", message)
}

/// Where a stream socket listens, or an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "{address}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What both kinds of listeners have.
#[derive(Debug, Clone)]
pub struct Common {
    pub name: Arc<str>,
    /// The one identity that the listener uses; there is no other to fall back to.
    pub as_id: SpiffeId,
    pub listen: Endpoint,
    pub service_port: u16,
    pub protocol: Protocol,
    pub handshake_timeout: Duration,
    /// Without it a connection may be idle for ever.
    pub idle_timeout: Option<Duration>,
    /// How long the head of an HTTP/1.1 request may take, counted from the end of the one before.
    pub header_timeout: Duration,
    /// The head of a request or response, all fields together, bytes.
    pub max_head: u32,
    /// Requests that a connection of HTTP/2 carries at once.
    pub max_streams: u32,
    /// Streams that one client may reset, over all its connections.
    pub resets_per_second: u32,
    pub max_lifetime: Option<Duration>,
    pub max_connections: usize,
    pub max_connections_per_identity: usize,
}

impl Common {
    /// When a connection opened now must end by the listener's own rule. Unix seconds.
    #[must_use]
    pub fn lifetime_from(&self, now: i64) -> Option<i64> {
        let lifetime = i64::try_from(self.max_lifetime?.as_secs()).unwrap_or(i64::MAX);
        Some(now.saturating_add(lifetime))
    }
}

#[derive(Debug, Clone)]
pub struct Inbound {
    pub app: Endpoint,
    /// Who must own the app's listening socket.
    pub app_uid: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct Outbound {
    pub expect: Arc<[IdPattern]>,
    /// `host:port`, tried in this order; hints that prove nothing.
    pub addresses: Vec<String>,
    /// Permission bits of a Unix socket.
    pub mode: u32,
    /// Of a captured connection: where it was going to.
    pub captured: Option<SocketAddr>,
    pub clients: Clients,
}

#[derive(Debug, Clone)]
pub enum Side {
    Inbound(Inbound),
    Outbound(Outbound),
    /// A template: each connection has a listener of its own, by where it was going to.
    CaptureInbound(CaptureInbound),
    CaptureOutbound(CaptureOutbound),
}

impl Side {
    /// How many ports it has, from that of `listen` on.
    #[must_use]
    pub fn ports(&self) -> u16 {
        match self {
            Side::CaptureOutbound(outbound) => outbound.ports,
            Side::Inbound(_) | Side::Outbound(_) | Side::CaptureInbound(_) => 1,
        }
    }
}

/// A checked listener specification.
#[derive(Debug, Clone)]
pub struct Spec {
    pub common: Common,
    pub side: Side,
}

#[derive(Deserialize)]
#[serde(tag = "direction", rename_all = "lowercase")]
enum Raw {
    Inbound(RawInbound),
    Outbound(RawOutbound),
    #[serde(rename = "capture_inbound")]
    CaptureInbound(RawCaptureInbound),
    #[serde(rename = "capture_outbound")]
    CaptureOutbound(RawCaptureOutbound),
}

// serde refuses unknown fields only without `flatten`, so that the common fields are written out twice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInbound {
    name: String,
    r#as: String,
    listen: String,
    service_port: u16,
    protocol: String,
    app: RawApp,
    handshake_timeout_ms: Option<u64>,
    idle_timeout_ms: Option<u64>,
    header_timeout_ms: Option<u64>,
    max_header_bytes: Option<u32>,
    max_streams: Option<u32>,
    max_resets_per_second: Option<u32>,
    max_lifetime_ms: Option<u64>,
    max_connections: Option<usize>,
    max_connections_per_identity: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApp {
    address: String,
    uid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOutbound {
    name: String,
    r#as: String,
    listen: String,
    service_port: u16,
    protocol: String,
    expect: Vec<String>,
    addresses: Vec<String>,
    mode: Option<String>,
    handshake_timeout_ms: Option<u64>,
    idle_timeout_ms: Option<u64>,
    header_timeout_ms: Option<u64>,
    max_header_bytes: Option<u32>,
    max_streams: Option<u32>,
    max_resets_per_second: Option<u32>,
    max_lifetime_ms: Option<u64>,
    max_connections: Option<usize>,
    max_connections_per_identity: Option<usize>,
}

/// Defaults of what a specification leaves out.
const HANDSHAKE_TIMEOUT_MS: u64 = 5_000;
const HEADER_TIMEOUT_MS: u64 = 30_000;
const MAX_HEADER_BYTES: u32 = 16 << 10;
const MAX_STREAMS: u32 = 200;
const MAX_RESETS_PER_SECOND: u32 = 1000;
const MAX_CONNECTIONS: usize = 16_384;
const MAX_CONNECTIONS_PER_IDENTITY: usize = 1_024;

impl Spec {
    #[must_use]
    pub fn direction(&self) -> Direction {
        match self.side {
            Side::Inbound(_) | Side::CaptureInbound(_) => Direction::Inbound,
            Side::Outbound(_) | Side::CaptureOutbound(_) => Direction::Outbound,
        }
    }

    /// What a listener for local clients has.
    #[must_use]
    pub fn outbound(&self) -> Option<&Outbound> {
        match &self.side {
            Side::Outbound(outbound) => Some(outbound),
            _ => None,
        }
    }

    /// How the local clients of an outbound listener are told, captured or not.
    #[must_use]
    pub fn clients(&self) -> Option<Clients> {
        match &self.side {
            Side::Outbound(outbound) => Some(outbound.clients),
            Side::CaptureOutbound(capture) => Some(capture.clients),
            Side::Inbound(_) | Side::CaptureInbound(_) => None,
        }
    }

    /// Read a specification.
    ///
    /// # Errors
    /// A field is unknown, missing, or holds what cannot be served; the sentence names it.
    pub fn parse(json: &str) -> Result<Self, ListenError> {
        let raw: Raw = serde_json::from_str(json).map_err(|error| bad(format!("listener: {error}")))?;
        match raw {
            Raw::Inbound(raw) => raw.check(),
            Raw::Outbound(raw) => raw.check(),
            Raw::CaptureInbound(raw) => raw.check(),
            Raw::CaptureOutbound(raw) => raw.check(),
        }
    }
}

impl RawInbound {
    fn check(self) -> Result<Spec, ListenError> {
        let listen = tcp(&self.name, "listen", &self.listen)?;
        let protocol = protocol(&self.name, &self.protocol)?;
        let app = endpoint(&self.name, "app.address", &self.app.address)?;
        let common = Common {
            as_id: id(&self.name, &self.r#as)?,
            listen: Endpoint::Tcp(listen),
            service_port: port(&self.name, self.service_port)?,
            protocol,
            handshake_timeout: Duration::from_millis(self.handshake_timeout_ms.unwrap_or(HANDSHAKE_TIMEOUT_MS)),
            idle_timeout: self.idle_timeout_ms.map(Duration::from_millis),
            header_timeout: Duration::from_millis(self.header_timeout_ms.unwrap_or(HEADER_TIMEOUT_MS)),
            max_head: self.max_header_bytes.unwrap_or(MAX_HEADER_BYTES),
            max_streams: self.max_streams.unwrap_or(MAX_STREAMS),
            resets_per_second: self.max_resets_per_second.unwrap_or(MAX_RESETS_PER_SECOND),
            max_lifetime: self.max_lifetime_ms.map(Duration::from_millis),
            max_connections: self.max_connections.unwrap_or(MAX_CONNECTIONS),
            max_connections_per_identity: self.max_connections_per_identity.unwrap_or(MAX_CONNECTIONS_PER_IDENTITY),
            name: name(self.name)?,
        };
        Ok(Spec { common, side: Side::Inbound(Inbound { app, app_uid: self.app.uid }) })
    }
}

impl RawOutbound {
    fn check(self) -> Result<Spec, ListenError> {
        let listen = endpoint(&self.name, "listen", &self.listen)?;
        check_local(&self.name, &listen)?;
        let protocol = protocol(&self.name, &self.protocol)?;
        let side = Outbound {
            expect: patterns(&self.name, &self.expect)?,
            addresses: hints(&self.name, self.addresses)?,
            mode: mode(&self.name, self.mode.as_deref(), &listen)?,
            captured: None,
            clients: Clients::Entry,
        };
        let common = Common {
            as_id: id(&self.name, &self.r#as)?,
            listen,
            service_port: port(&self.name, self.service_port)?,
            protocol,
            handshake_timeout: Duration::from_millis(self.handshake_timeout_ms.unwrap_or(HANDSHAKE_TIMEOUT_MS)),
            idle_timeout: self.idle_timeout_ms.map(Duration::from_millis),
            header_timeout: Duration::from_millis(self.header_timeout_ms.unwrap_or(HEADER_TIMEOUT_MS)),
            max_head: self.max_header_bytes.unwrap_or(MAX_HEADER_BYTES),
            max_streams: self.max_streams.unwrap_or(MAX_STREAMS),
            resets_per_second: self.max_resets_per_second.unwrap_or(MAX_RESETS_PER_SECOND),
            max_lifetime: self.max_lifetime_ms.map(Duration::from_millis),
            max_connections: self.max_connections.unwrap_or(MAX_CONNECTIONS),
            max_connections_per_identity: self.max_connections_per_identity.unwrap_or(MAX_CONNECTIONS_PER_IDENTITY),
            name: name(self.name)?,
        };
        Ok(Spec { common, side: Side::Outbound(side) })
    }
}

/// The limits of a capture listener.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLimits {
    handshake_timeout_ms: Option<u64>,
    idle_timeout_ms: Option<u64>,
    header_timeout_ms: Option<u64>,
    max_header_bytes: Option<u32>,
    max_streams: Option<u32>,
    max_resets_per_second: Option<u32>,
    max_lifetime_ms: Option<u64>,
    max_connections: Option<usize>,
    max_connections_per_identity: Option<usize>,
}

impl RawLimits {
    /// What a capture listener has in common with others; port and protocol are each connection's own.
    pub fn common(self, title: String, as_id: &str, listen: &str) -> Result<Common, ListenError> {
        Ok(Common {
            as_id: id(&title, as_id)?,
            listen: Endpoint::Tcp(tcp(&title, "listen", listen)?),
            service_port: 0,
            protocol: Protocol::Tcp,
            handshake_timeout: Duration::from_millis(self.handshake_timeout_ms.unwrap_or(HANDSHAKE_TIMEOUT_MS)),
            idle_timeout: self.idle_timeout_ms.map(Duration::from_millis),
            header_timeout: Duration::from_millis(self.header_timeout_ms.unwrap_or(HEADER_TIMEOUT_MS)),
            max_head: self.max_header_bytes.unwrap_or(MAX_HEADER_BYTES),
            max_streams: self.max_streams.unwrap_or(MAX_STREAMS),
            resets_per_second: self.max_resets_per_second.unwrap_or(MAX_RESETS_PER_SECOND),
            max_lifetime: self.max_lifetime_ms.map(Duration::from_millis),
            max_connections: self.max_connections.unwrap_or(MAX_CONNECTIONS),
            max_connections_per_identity: self.max_connections_per_identity.unwrap_or(MAX_CONNECTIONS_PER_IDENTITY),
            name: name(title)?,
        })
    }
}

fn name(text: String) -> Result<Arc<str>, ListenError> {
    if text.is_empty() || text.len() > 63 || text.chars().any(char::is_control) {
        return Err(bad("listener: name must have 1 to 63 characters, none of them a control character"));
    }
    Ok(text.into())
}

fn id(name: &str, text: &str) -> Result<SpiffeId, ListenError> {
    SpiffeId::parse(text).map_err(|error| bad(format!("listener {name}: as is not a SPIFFE ID: {error}")))
}

fn port(name: &str, port: u16) -> Result<u16, ListenError> {
    if port == 0 { Err(bad(format!("listener {name}: service_port must be 1 to 65535"))) } else { Ok(port) }
}

pub(crate) fn protocol(name: &str, word: &str) -> Result<Protocol, ListenError> {
    let sentence = || bad(format!("listener {name}: protocol {word:?} is not one of tcp, http, grpc"));
    Protocol::parse(word).ok_or_else(sentence)
}

fn endpoint(name: &str, field: &str, text: &str) -> Result<Endpoint, ListenError> {
    match text.strip_prefix("unix:") {
        None => tcp(name, field, text).map(Endpoint::Tcp),
        Some(path) if !path.starts_with('/') => {
            Err(bad(format!("listener {name}: {field} must name an absolute path after unix:")))
        }
        Some(path) if path.len() > MAX_SOCKET_PATH => Err(bad(format!(
            "listener {name}: {field} is a socket path of {} bytes; the system takes {MAX_SOCKET_PATH}",
            path.len()
        ))),
        Some(path) => Ok(Endpoint::Unix(path.into())),
    }
}

fn tcp(name: &str, field: &str, text: &str) -> Result<SocketAddr, ListenError> {
    let sentence = || bad(format!("listener {name}: {field} {text:?} is not an IP address with a port"));
    text.parse().map_err(|_| sentence())
}

/// Anything else would let other machines speak as this one's workloads.
pub(crate) fn check_local(name: &str, listen: &Endpoint) -> Result<(), ListenError> {
    match listen {
        Endpoint::Tcp(address) if !address.ip().is_loopback() => Err(ListenError::new(
            "not_loopback",
            format!("listener {name}: an outbound listener is a unix: path or a loopback address, not {address}"),
        )),
        _ => Ok(()),
    }
}

fn patterns(name: &str, texts: &[String]) -> Result<Arc<[IdPattern]>, ListenError> {
    if texts.is_empty() || texts.len() > MAX_EXPECT {
        return Err(bad(format!("listener {name}: expect must have 1 to {MAX_EXPECT} ID patterns")));
    }
    let parse = |text: &String| {
        IdPattern::parse(text).map_err(|error| bad(format!("listener {name}: expect has {text:?}: {error}")))
    };
    texts.iter().map(parse).collect()
}

fn hints(name: &str, addresses: Vec<String>) -> Result<Vec<String>, ListenError> {
    if addresses.is_empty() || addresses.len() > MAX_ADDRESSES {
        return Err(bad(format!("listener {name}: addresses must have 1 to {MAX_ADDRESSES} entries")));
    }
    let split = |text: &String| {
        let (host, port) = text.rsplit_once(':')?;
        (!host.is_empty() && host.len() <= 255 && port.parse::<u16>().is_ok_and(|port| port != 0)).then_some(())
    };
    match addresses.iter().find(|text| split(text).is_none()) {
        Some(text) => Err(bad(format!("listener {name}: addresses has {text:?}, which is not host:port"))),
        None => Ok(addresses),
    }
}

fn mode(name: &str, text: Option<&str>, listen: &Endpoint) -> Result<u32, ListenError> {
    let sentence = || bad(format!("listener {name}: mode is an octal permission such as \"0660\""));
    match (text, listen) {
        (None, _) => Ok(0o600),
        (Some(_), Endpoint::Tcp(_)) => Err(bad(format!("listener {name}: mode belongs to a unix: listener"))),
        (Some(text), Endpoint::Unix(_)) => {
            u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(sentence)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn inbound() -> Value {
        json!({"direction": "inbound", "name": "models", "as": "spiffe://td/m", "listen": "0.0.0.0:19000",
               "service_port": 9000, "protocol": "tcp", "app": {"address": "127.0.0.1:9000", "uid": 1001}})
    }

    fn outbound() -> Value {
        json!({"direction": "outbound", "name": "models", "as": "spiffe://td/v", "listen": "unix:/run/m.sock",
               "service_port": 9000, "protocol": "tcp", "expect": ["spiffe://td/m"], "addresses": ["registry:19000"]})
    }

    fn with(mut base: Value, field: &str, value: Value) -> Result<Spec, ListenError> {
        base[field] = value;
        Spec::parse(&base.to_string())
    }

    fn capture(direction: &str) -> Value {
        let common = json!({"direction": direction, "name": "c", "as": "spiffe://td/m", "limits": {}});
        let own = match direction {
            "capture_inbound" => json!({"listen": "[::]:15006", "app": {"address": "own"}, "reserved": [9091],
                                        "ports": [{"port": 80, "protocol": "http"}]}),
            _ => json!({"listen": "127.0.0.1:15001", "ports": 2, "clients": "entry"}),
        };
        let (Value::Object(mut all), Value::Object(own)) = (common, own) else { unreachable!() };
        all.extend(own);
        all.into()
    }

    #[test]
    fn capture_listeners_are_read() {
        let inbound = capture("capture_inbound");
        let spec = Spec::parse(&inbound.to_string()).unwrap();
        assert_eq!((spec.direction(), spec.common.service_port), (Direction::Inbound, 0));
        let Side::CaptureInbound(side) = &spec.side else { panic!("{spec:?}") };
        for (wanted, protocol) in [("10.0.0.1:80", Protocol::Http), ("[fd00::1]:81", Protocol::Tcp)] {
            let one = side.listener(&spec.common, wanted.parse().unwrap());
            assert_eq!(one.common.protocol, protocol);
            assert!(
                matches!(one.side, Side::Inbound(Inbound { app: Endpoint::Tcp(app), .. }) if app.to_string() == wanted)
            );
        }
        let spec = with(inbound.clone(), "app", json!({"address": "loopback", "uid": 7})).unwrap();
        let Side::CaptureInbound(side) = &spec.side else { panic!("{spec:?}") };
        let one = side.listener(&spec.common, "[fd00::1]:81".parse().unwrap());
        assert_eq!(one.common.service_port, 81);
        assert!(matches!(one.side, Side::Inbound(Inbound { app: Endpoint::Tcp(app), app_uid: Some(7) })
            if app.to_string() == "[::1]:81"));
        assert!(side.is_reserved(9091) && !side.is_reserved(9092));
        let spec = Spec::parse(&capture("capture_outbound").to_string()).unwrap();
        assert_eq!((spec.direction(), spec.clients()), (Direction::Outbound, Some(Clients::Entry)));
        assert_eq!(spec.side.ports(), 2);
        with(capture("capture_outbound"), "clients", json!("network-namespace")).unwrap();
    }

    #[test]
    fn capture_listeners_that_cannot_be_served_are_refused() {
        let (inbound, outbound) = (|| capture("capture_inbound"), || capture("capture_outbound"));
        let twice = json!([{"port": 80, "protocol": "http"}, {"port": 80, "protocol": "tcp"}]);
        for (base, field, value, word) in [
            (inbound(), "ports", twice, "twice"),
            (inbound(), "ports", json!([{"port": 0, "protocol": "tcp"}]), "or 0"),
            (inbound(), "ports", json!([{"port": 1, "protocol": "udp"}]), "udp"),
            (inbound(), "app", json!({"address": "10.0.0.1"}), "own or loopback"),
            (inbound(), "listen", json!("unix:/run/x.sock"), "listen"),
            (inbound(), "service_port", json!(1), "unknown field"),
            (outbound(), "listen", json!("0.0.0.0:15001"), "loopback"),
            (outbound(), "clients", json!("anybody"), "network-namespace"),
            (outbound(), "ports", json!(0), "ports"),
            (outbound(), "listen", json!("127.0.0.1:65535"), "ports"),
            (outbound(), "expect", json!([]), "unknown field"),
        ] {
            let error = with(base, field, value.clone()).unwrap_err();
            assert!(error.message.contains(word), "{field} {value}: {error}");
        }
    }

    #[test]
    fn both_kinds_are_read() {
        let spec = Spec::parse(&inbound().to_string()).unwrap();
        assert_eq!(spec.common.handshake_timeout, Duration::from_secs(5));
        assert_eq!(spec.common.max_connections_per_identity, 1024);
        assert!(matches!(spec.side, Side::Inbound(Inbound { app_uid: Some(1001), .. })));
        let spec = Spec::parse(&outbound().to_string()).unwrap();
        assert!(matches!(spec.side, Side::Outbound(Outbound { mode: 0o600, .. })));
        with(outbound(), "mode", json!("0660")).unwrap();
        with(outbound(), "listen", json!("127.0.0.1:9100")).unwrap();
        with(outbound(), "listen", json!("[::1]:9100")).unwrap();
        with(inbound(), "app", json!({"address": "unix:/run/app.sock"})).unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!("unix:/{}", "x".repeat(107));
        let cases = [
            (with(inbound(), "expcet", json!([])), "expcet"),
            (with(inbound(), "expect", json!([])), "expect"),
            (with(inbound(), "app", json!({"address": "127.0.0.1:1", "user": 1})), "user"),
            (with(inbound(), "direction", json!("sideways")), "sideways"),
            (with(inbound(), "as", json!("https://td/m")), "as"),
            (with(inbound(), "listen", json!("registry:1")), "listen"),
            (with(inbound(), "listen", json!("unix:/x")), "listen"),
            (with(inbound(), "service_port", json!(0)), "service_port"),
            (with(inbound(), "service_port", json!(65536)), "65536"),
            (with(inbound(), "protocol", json!("https")), "protocol"),
            (with(inbound(), "protocol", json!("quic")), "protocol"),
            (with(inbound(), "name", json!("")), "name"),
            (with(outbound(), "listen", json!("0.0.0.0:9100")), "loopback"),
            (with(outbound(), "listen", json!("unix:relative")), "listen"),
            (with(outbound(), "listen", json!(long)), "108 bytes"),
            (with(outbound(), "expect", json!([])), "expect"),
            (with(outbound(), "expect", json!(["spiffe://td/m*"])), "expect"),
            (with(outbound(), "addresses", json!([])), "addresses"),
            (with(outbound(), "addresses", json!(["registry"])), "addresses"),
            (with(outbound(), "addresses", json!(["registry:0"])), "addresses"),
            (with(outbound(), "mode", json!("999")), "mode"),
            (with(outbound(), "mode", json!("07777")), "mode"),
        ];
        for (n, (result, named)) in cases.into_iter().enumerate() {
            let error = result.expect_err(&format!("case {n}, {named}"));
            assert!(error.message.contains(named), "{error}");
        }
    }
}
