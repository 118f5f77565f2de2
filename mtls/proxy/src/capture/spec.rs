// SPDX-License-Identifier: Apache-2.0
//! Capture listeners as they are configured, and the listener that one captured connection is served by.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use firedoor_policy::{Expectation, Protocol};
use serde::Deserialize;

use crate::local::Clients;
use crate::spec::{self, Common, Endpoint, Inbound, ListenError, Outbound, RawLimits, Side, Spec, bad};

/// More ports than an app has.
const MAX_PORTS: usize = 1024;

/// Takes what arrives in a network namespace, at whatever port.
#[derive(Debug, Clone)]
pub struct CaptureInbound {
    /// Those that are declared; any other is opaque, and takes TLS alone.
    ports: HashMap<u16, Port>,
    app: App,
    app_uid: Option<u32>,
    /// Ports of the sidecar's own that are no listeners of the data path.
    reserved: Vec<u16>,
}

#[derive(Debug, Clone, Copy)]
struct Port {
    protocol: Protocol,
    /// Whether clients without TLS pass while the segment is in audit mode.
    plaintext: bool,
}

/// Where in the namespace the app is connected to, at the port that the peer wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum App {
    /// At the address that the peer wanted.
    Own,
    Loopback,
}

impl CaptureInbound {
    pub fn is_reserved(&self, port: u16) -> bool {
        self.reserved.contains(&port)
    }

    pub fn passes_plaintext(&self, port: u16) -> bool {
        self.ports.get(&port).is_some_and(|port| port.plaintext)
    }

    pub fn has_plaintext(&self) -> bool {
        self.ports.values().any(|port| port.plaintext)
    }

    /// The listener that serves a connection to this address of ours.
    pub fn listener(&self, template: &Common, wanted: SocketAddr) -> Spec {
        let ip = match (self.app, wanted.ip()) {
            (App::Own, ip) => ip,
            (App::Loopback, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (App::Loopback, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        };
        let protocol = self.ports.get(&wanted.port()).map_or(Protocol::Tcp, |port| port.protocol);
        let app = Endpoint::Tcp(SocketAddr::new(ip, wanted.port()));
        Spec {
            common: Common { service_port: wanted.port(), protocol, ..template.clone() },
            side: Side::Inbound(Inbound { app, app_uid: self.app_uid }),
        }
    }
}

/// Takes what leaves a network namespace, wherever it goes.
#[derive(Debug, Clone)]
pub struct CaptureOutbound {
    pub clients: Clients,
    /// How many ports it has. A program may use one port of its own towards several destinations; all redirected to
    /// one port of ours, the kernel has to give all but the first another port, by which nobody is found any more.
    pub ports: u16,
}

impl CaptureOutbound {
    /// The listener that serves a connection to this address, by what the directory has for it.
    pub fn listener(&self, template: &Common, wanted: SocketAddr, row: &Expectation) -> Spec {
        let addresses = if row.connect.is_empty() { vec![wanted.to_string()] } else { row.connect.clone() };
        let (expect, captured) = (row.expect.clone(), Some(wanted));
        Spec {
            common: Common { service_port: row.service_port, protocol: row.protocol, ..template.clone() },
            side: Side::Outbound(Outbound { expect, addresses, mode: 0, captured, clients: self.clients }),
        }
    }

    /// The listener of a connection that the directory has nothing for: opaque, and with nobody to expect.
    pub fn unlisted(&self, template: &Common, wanted: SocketAddr) -> Spec {
        let (expect, captured) = (Arc::default(), Some(wanted));
        Spec {
            common: Common { service_port: wanted.port(), ..template.clone() },
            side: Side::Outbound(Outbound { expect, addresses: vec![], mode: 0, captured, clients: self.clients }),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCaptureInbound {
    name: String,
    r#as: String,
    listen: String,
    ports: Vec<RawPort>,
    app: RawApp,
    reserved: Vec<u16>,
    limits: RawLimits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPort {
    port: u16,
    protocol: String,
    plaintext: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApp {
    address: String,
    uid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCaptureOutbound {
    name: String,
    r#as: String,
    listen: String,
    ports: u16,
    clients: String,
    limits: RawLimits,
}

impl RawCaptureInbound {
    pub fn check(self) -> Result<Spec, ListenError> {
        let app = match self.app.address.as_str() {
            "own" => App::Own,
            "loopback" => App::Loopback,
            other => return Err(bad(format!("listener {}: app.address {other:?} is not own or loopback", self.name))),
        };
        if self.ports.len() > MAX_PORTS {
            return Err(bad(format!("listener {}: ports has more than {MAX_PORTS} entries", self.name)));
        }
        let mut ports = HashMap::new();
        for RawPort { port, protocol, plaintext } in &self.ports {
            let plaintext = match plaintext.as_deref() {
                None => false,
                Some("audit") => true,
                Some(other) => return Err(bad(format!("listener {}: plaintext {other:?} is not audit", self.name))),
            };
            let made = Port { protocol: spec::protocol(&self.name, protocol)?, plaintext };
            if *port == 0 || ports.insert(*port, made).is_some() {
                return Err(bad(format!("listener {}: ports has {port} twice, or 0", self.name)));
            }
        }
        let side = CaptureInbound { ports, app, app_uid: self.app.uid, reserved: self.reserved };
        let common = self.limits.common(self.name, &self.r#as, &self.listen)?;
        Ok(Spec { common, side: Side::CaptureInbound(side) })
    }
}

impl RawCaptureOutbound {
    pub fn check(self) -> Result<Spec, ListenError> {
        let clients = Clients::parse(&self.clients).ok_or_else(|| {
            bad(format!("listener {}: clients {:?} is not entry or network-namespace", self.name, self.clients))
        })?;
        let common = self.limits.common(self.name, &self.r#as, &self.listen)?;
        spec::check_local(&common.name, &common.listen)?;
        let (name, ports) = (&common.name, self.ports);
        match &common.listen {
            Endpoint::Tcp(first) if ports > 0 && first.port().checked_add(ports - 1).is_some() => {}
            _ => return Err(bad(format!("listener {name}: there are no {ports} ports from that of listen on"))),
        }
        Ok(Spec { common, side: Side::CaptureOutbound(CaptureOutbound { clients, ports }) })
    }
}
