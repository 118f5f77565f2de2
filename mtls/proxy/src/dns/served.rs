// SPDX-License-Identifier: Apache-2.0
//! What becomes of one query, however it came: whether it is asked, who answers, and the record.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use firedoor_dns::{Fault, Names, Query, Rcode, rcode, rcode_text, type_text};
use tokio::time::{Instant, timeout};

use super::counters::Counters;
use super::resolvers::Resolvers;
use super::upstream::{self, Transport};
use crate::proxy::Shared;
use crate::records::{Asked, ClientId, Direction, Outcome, Record};

/// What the records call the relay; no listener of the configuration has this protocol.
const NAME: &str = "dns";
const PROTOCOL: &str = "dns";
const PORT: u16 = 53;
const ALLOWED: &str = "allowed";
const NOT_LISTED: &str = "dns_name_not_listed";
const UNSUPPORTED: &str = "dns_unsupported";

/// What all sockets of a relay share.
#[derive(Debug)]
pub(crate) struct Served {
    pub shared: Arc<Shared>,
    /// None: every name.
    names: Option<Names>,
    resolvers: RwLock<Arc<Resolvers>>,
}

/// A query and what is known of who asks.
#[derive(Debug)]
pub(crate) struct Question {
    pub query: Query,
    pub transport: Transport,
    pub client: Option<ClientId>,
    begun: Instant,
}

impl Served {
    pub fn new(shared: Arc<Shared>, names: Option<Names>) -> Self {
        Served { shared, names, resolvers: RwLock::default() }
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.dns
    }

    /// Ask others from now on.
    pub fn ask(&self, resolvers: Resolvers) {
        *self.resolvers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(resolvers);
    }

    /// Read a message and decide whether it is asked.
    ///
    /// # Errors
    /// It is not; this is said about it, if anything.
    pub fn take(
        &self,
        message: &[u8],
        transport: Transport,
        client: Option<ClientId>,
    ) -> Result<Question, Option<Vec<u8>>> {
        let query = Query::read(message).map_err(|fault| {
            Counters::add(&self.counters().malformed);
            match fault {
                Fault::Silent => None,
                Fault::Said(answer) => Some(answer),
            }
        })?;
        Counters::add(&self.counters().queries);
        let question = Question { query, transport, client, begun: Instant::now() };
        let refusal = match question.query.unsupported() {
            Some(code) => Some((code, UNSUPPORTED)),
            None if self.may_be_asked(&question.query) => None,
            None => Some((Rcode::Refused, NOT_LISTED)),
        };
        let Some((code, reason)) = refusal else { return Ok(question) };
        Counters::add(&self.counters().refused);
        self.record(&question, Outcome::Denied, reason, code as u8, None);
        Err(Some(question.query.answer(code)))
    }

    fn may_be_asked(&self, query: &Query) -> bool {
        self.names.as_ref().is_none_or(|names| names.contain(query.name()))
    }

    /// Get an answer from the resolvers, or say that there is none.
    pub async fn answer(&self, question: &Question) -> Vec<u8> {
        let query = &question.query;
        match self.resolve(question).await {
            Some((mut answer, resolver)) => {
                Counters::add(&self.counters().answered);
                let code = rcode(&answer);
                self.record(question, Outcome::Allowed, ALLOWED, code, Some(resolver));
                if question.transport == Transport::Udp && answer.len() > query.udp_limit() {
                    return query.truncated(code);
                }
                query.give_back_id(&mut answer);
                answer
            }
            None => {
                Counters::add(&self.counters().failed);
                self.record(question, Outcome::Allowed, ALLOWED, Rcode::ServFail as u8, None);
                query.answer(Rcode::ServFail)
            }
        }
    }

    /// Ask one resolver after the other. One that cannot say (as resolv.conf(5)'s reader has it: SERVFAIL, NOTIMP,
    /// REFUSED) is not asked again, and its answer is given if nobody knows better.
    async fn resolve(&self, question: &Question) -> Option<(Vec<u8>, SocketAddr)> {
        let resolvers = self.resolvers.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (share, mut said) = (resolvers.share(), vec![]);
        for _ in 0..resolvers.attempts {
            for (place, resolver) in resolvers.in_turn() {
                if said.iter().any(|(_, one)| *one == resolver) {
                    continue;
                }
                let asking = upstream::ask(question.transport, resolver, &question.query, self.counters());
                match timeout(share, asking).await {
                    Ok(Ok(answer)) if cannot_say(rcode(&answer)) => said.push((answer, resolver)),
                    Ok(Ok(answer)) => return Some((answer, resolver)),
                    Ok(Err(_)) | Err(_) => resolvers.silent(place),
                }
            }
        }
        said.pop()
    }

    fn record(
        &self,
        question: &Question,
        decision: Outcome,
        reason: &'static str,
        code: u8,
        resolver: Option<SocketAddr>,
    ) {
        let Shared { store, records, .. } = &*self.shared;
        let material = store.present();
        let asked = Asked {
            name: question.query.name().to_string(),
            kind: type_text(question.query.kind()),
            transport: question.transport.as_str(),
            rcode: rcode_text(code),
            microseconds: u64::try_from(question.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        let empty = || Arc::<str>::from("");
        records.push(Record {
            time: store.clock().since_1970(),
            direction: Direction::Outbound,
            listener: NAME.into(),
            correlation: Default::default(),
            source: empty(),
            source_segment: empty(),
            destination: empty(),
            destination_segment: empty(),
            port: PORT,
            protocol: PROTOCOL,
            method: empty(),
            path: empty(),
            decision,
            flow: empty(),
            reason,
            peer_address: resolver,
            peer_serial: empty(),
            generation: material.as_deref().map_or((0, 0), |material| material.generation()),
            revision: material.as_deref().map_or(0, |material| material.revision()),
            client: question.client,
            alert: false,
            dns: Some(Box::new(asked)),
        });
    }
}

fn cannot_say(code: u8) -> bool {
    [Rcode::ServFail, Rcode::NotImp, Rcode::Refused].iter().any(|one| *one as u8 == code)
}
