// SPDX-License-Identifier: Apache-2.0
//! Counters that only grow.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What fronts and connectors have seen since the start.
        #[derive(Debug, Default)]
        pub struct Stats { $($(#[$doc])* pub $name: AtomicU64,)* }

        impl Stats {
            /// All counters with their names.
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Connections taken by fronts.
    front_accepted,
    /// Pauses because the process had no descriptors left.
    accept_backoffs,
    /// Handshakes that ended without a connection, whatever the reason.
    handshakes_failed,
    /// Of these, certificates that were presented and refused.
    certificates_refused,
    /// Connections without a client certificate.
    anonymous,
    /// Of these, those for which no seat came free in time.
    anonymous_crowded,
    /// Of these, those that were cut because they took too long.
    anonymous_slow,
    /// Connections whose ALPN nobody serves.
    alpn_refused,
    /// Unix callers that cannot be told: of another PID namespace or user namespace.
    unix_refused,
    /// Names that were asked about and are not live.
    callers_unknown,
    /// Connections ended at the expiry of a certificate.
    closed_expired,
    /// Connections ended because the peer was shut out, or a new generation does not admit it.
    closed_refused,
    /// Unix connections ended because the process that opened them did.
    closed_process_ended,
    /// Connections for which the private server could not be reached, or was not ours.
    backend_failed,
    /// Connections to web fronts for which no seat was left.
    web_crowded,
    /// Connections to web fronts that were cut because they took too long.
    web_slow,
    /// Verified connections that connectors made.
    connector_connected,
    /// Attempts of connectors that failed.
    connector_failed,
    /// Programs that are not this process and knocked at a connector.
    connector_strangers,
}

impl Stats {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
