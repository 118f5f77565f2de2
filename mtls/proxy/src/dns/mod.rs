// SPDX-License-Identifier: Apache-2.0
//! The DNS relay of a captured network namespace: port 53 of whatever address leads here, and from here to the
//! resolvers that are configured, and to no other.
//!
//! A query is read whole and written anew ([`firedoor_dns`]); each is sent from a socket of its own with an ID of its
//! own ([`upstream`]), so that who sees neither cannot answer it. Nothing is remembered between queries but which
//! resolver to begin with. Each query leaves a record, with what it asked for; what is no query is counted.

mod counters;
mod resolvers;
mod served;
mod tcp;
mod udp;
mod upstream;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use firedoor_dns::Names;
use firedoor_front::bind_tcp;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

pub(crate) use counters::Counters;
use resolvers::Resolvers;
use served::Served;

use crate::proxy::{Bound, Shared};
use crate::spec::ListenError;

/// More than any resolv.conf is read of (resolv.conf(5): 3), and than anybody needs.
const MAX_RESOLVERS: usize = 8;
const MAX_LISTEN: usize = 4;
/// resolv.conf(5): what `timeout` and `attempts` are cut to.
const MAX_SECONDS: u64 = 30;
const MAX_ATTEMPTS: u32 = 5;

/// Take the queries at some addresses, by UDP and TCP.
#[derive(Debug)]
pub struct Relay {
    served: Arc<Served>,
    addresses: Vec<SocketAddr>,
    open: Mutex<Option<Open>>,
}

/// What goes when the relay stops.
#[derive(Debug)]
struct Open {
    tasks: Vec<AbortHandle>,
    _bound: Vec<Bound>,
}

impl Relay {
    /// Listen at each address. Without `names` every name may be asked for. Nobody is asked before `update`.
    ///
    /// # Errors
    /// An address is not on loopback or cannot be bound, or one of the names is none.
    pub(crate) fn open(
        shared: &Arc<Shared>,
        runtime: &Handle,
        listen: &[SocketAddr],
        names: Option<&[String]>,
    ) -> Result<Self, ListenError> {
        let names = names.map(Names::parse).transpose();
        let names = names.map_err(|error| ListenError::new("bad_dns_name", format!("DNS relay: a name {error}")))?;
        if listen.is_empty() || listen.len() > MAX_LISTEN {
            return Err(bad(format!("1 to {MAX_LISTEN} addresses are listened at")));
        }
        if let Some(other) = listen.iter().find(|address| !address.ip().is_loopback()) {
            return Err(bad(format!("{other} is not on loopback, and would be asked by others")));
        }
        let served = Arc::new(Served::new(shared.clone(), names));
        let (mut sockets, mut addresses) = (vec![], vec![]);
        for address in listen {
            let tcp = bind_tcp(&address.to_string()).map_err(|error| cannot_listen(&error))?;
            // A port that the system chose is the same for both.
            let at = tcp.local_addr().map_err(|error| cannot_listen(&error))?;
            let udp =
                udp::bind(at).map_err(|error| cannot_listen(&format!("cannot listen on {at} by UDP: {error}")))?;
            sockets.push((tcp, udp));
            addresses.push(at);
        }
        let mut tasks = vec![];
        for (tcp, udp) in sockets {
            tasks.push(runtime.spawn(tcp::serve(served.clone(), tcp)).abort_handle());
            tasks.push(runtime.spawn(udp::serve(served.clone(), udp)).abort_handle());
        }
        let bound = addresses.iter().map(|address| shared.bound(*address)).collect();
        Ok(Relay { served, addresses, open: Mutex::new(Some(Open { tasks, _bound: bound })) })
    }

    /// Where it listens, as bound.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Ask these resolvers from the next query on, in this order; nobody when there are none.
    ///
    /// A round over all of them takes `timeout`, and there are `attempts` rounds.
    ///
    /// # Errors
    /// There are too many, one cannot be asked, or is this relay itself; nothing is changed then.
    pub fn update(&self, resolvers: &[SocketAddr], timeout: Duration, attempts: u32) -> Result<(), ListenError> {
        if resolvers.len() > MAX_RESOLVERS {
            return Err(bad(format!("{MAX_RESOLVERS} resolvers at most are asked")));
        }
        for address in resolvers {
            let ip = address.ip();
            if ip.is_unspecified() || ip.is_multicast() || address.port() == 0 {
                return Err(bad(format!("{address} is nobody's address")));
            }
            if ip.to_canonical().is_loopback() && self.addresses.iter().any(|own| own.port() == address.port()) {
                return Err(bad(format!("{address} is the relay itself")));
            }
        }
        let timeout = timeout.clamp(Duration::from_secs(1), Duration::from_secs(MAX_SECONDS));
        self.served.ask(Resolvers::new(resolvers, timeout, attempts.clamp(1, MAX_ATTEMPTS)));
        Ok(())
    }

    /// Listen no more. Queries that are under way get no answer.
    pub fn stop(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        for task in open.iter().flat_map(|open| &open.tasks) {
            task.abort();
        }
    }
}

fn bad(message: String) -> ListenError {
    ListenError::new("bad_dns_relay", format!("DNS relay: {message}"))
}

fn cannot_listen(error: &dyn std::fmt::Display) -> ListenError {
    ListenError::new("bind", format!("DNS relay: {error}"))
}

#[cfg(test)]
mod tests;
