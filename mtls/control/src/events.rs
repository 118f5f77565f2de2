// SPDX-License-Identifier: Apache-2.0
//! What sidecars said, until Python drains it.
//!
//! A sidecar cannot make this grow: of each stream there wait at most one Hello, one answer (the latest Ack or Nack:
//! an older one says nothing any more) and the news that it closed. A stream that closed before its Hello was drained
//! leaves nothing at all.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use firedoor_front::WakeSource;

use crate::message::Kind;

/// What happened on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Hello,
    Ack,
    Nack,
    Closed,
}

impl EventKind {
    /// The word that Python sees.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Ack => "ack",
            Self::Nack => "nack",
            Self::Closed => "closed",
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub agent: Arc<str>,
    pub stream: u64,
    /// The encoded `FromSidecar`; empty when the stream closed.
    pub message: Bytes,
}

#[derive(Debug)]
pub(crate) struct Events {
    queue: Mutex<Queue>,
    wake: WakeSource,
}

#[derive(Debug, Default)]
struct Queue {
    streams: HashMap<u64, Waiting>,
    // Streams with something to drain, each once, in the order in which it came.
    ready: VecDeque<u64>,
}

#[derive(Debug)]
struct Waiting {
    agent: Arc<str>,
    hello: Option<Bytes>,
    answer: Option<(EventKind, Bytes)>,
    // Whether Python has been told of the stream.
    known: bool,
    closed: bool,
    queued: bool,
}

impl Waiting {
    fn next(&mut self) -> Option<(EventKind, Bytes)> {
        if let Some(hello) = self.hello.take() {
            self.known = true;
            return Some((EventKind::Hello, hello));
        }
        self.answer.take().or_else(|| self.closed.then_some((EventKind::Closed, Bytes::new())))
    }

    fn is_empty(&self) -> bool {
        self.hello.is_none() && self.answer.is_none() && !self.closed
    }
}

impl Events {
    pub(crate) fn new(wake: WakeSource) -> Self {
        Self { queue: Mutex::default(), wake }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep a message of a stream.
    pub(crate) fn said(&self, agent: &Arc<str>, stream: u64, kind: Kind, message: Bytes) {
        let mut queue = self.queue();
        let waiting = queue.streams.entry(stream).or_insert_with(|| Waiting {
            agent: agent.clone(),
            hello: None,
            answer: None,
            known: false,
            closed: false,
            queued: false,
        });
        match kind {
            Kind::Hello => waiting.hello = Some(message),
            Kind::Ack => waiting.answer = Some((EventKind::Ack, message)),
            Kind::Nack => waiting.answer = Some((EventKind::Nack, message)),
        }
        self.ready(&mut queue, stream);
    }

    /// Keep the news that a stream closed, if Python has heard of it.
    pub(crate) fn closed(&self, stream: u64) {
        let mut queue = self.queue();
        match queue.streams.get_mut(&stream) {
            Some(waiting) if waiting.known => {
                waiting.closed = true;
                self.ready(&mut queue, stream);
            }
            Some(_) => {
                queue.streams.remove(&stream);
                queue.ready.retain(|ready| *ready != stream);
            }
            None => {}
        }
    }

    fn ready(&self, queue: &mut Queue, stream: u64) {
        if let Some(waiting) = queue.streams.get_mut(&stream)
            && !std::mem::replace(&mut waiting.queued, true)
        {
            queue.ready.push_back(stream);
            self.wake.raise();
        }
    }

    /// Take up to `limit` events.
    pub(crate) fn drain(&self, limit: usize) -> Vec<Event> {
        self.wake.lower();
        let mut queue = self.queue();
        let mut events = Vec::new();
        while events.len() < limit
            && let Some(stream) = queue.ready.front().copied()
        {
            let Some(waiting) = queue.streams.get_mut(&stream) else {
                queue.ready.pop_front();
                continue;
            };
            if let Some((kind, message)) = waiting.next() {
                events.push(Event { kind, agent: waiting.agent.clone(), stream, message });
            }
            let gone = waiting.closed && events.last().is_some_and(|event| event.kind == EventKind::Closed);
            if gone {
                queue.streams.remove(&stream);
                queue.ready.pop_front();
            } else if waiting.is_empty() {
                waiting.queued = false;
                queue.ready.pop_front();
            }
        }
        if !queue.ready.is_empty() {
            self.wake.raise();
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use firedoor_front::Wake;

    use super::*;

    fn drained(events: &Events, limit: usize) -> Vec<(&'static str, u64, Bytes)> {
        events.drain(limit).into_iter().map(|event| (event.kind.as_str(), event.stream, event.message)).collect()
    }

    #[test]
    fn a_stream_has_at_most_one_hello_and_one_answer() {
        let events = Events::new(Wake::new().unwrap().source());
        let agent: Arc<str> = "spiffe://td/spire/agent/a".into();
        events.said(&agent, 1, Kind::Hello, "h".into());
        for number in 0..100 {
            events.said(&agent, 1, Kind::Nack, "n".into());
            events.said(&agent, 1, Kind::Ack, number.to_string().into());
        }
        events.said(&agent, 2, Kind::Hello, "i".into());
        assert_eq!(drained(&events, 1), [("hello", 1, "h".into())]);
        assert_eq!(drained(&events, 9), [("ack", 1, "99".into()), ("hello", 2, "i".into())]);
        assert_eq!(drained(&events, 9), []);
        events.said(&agent, 1, Kind::Nack, "no".into());
        events.closed(1);
        assert_eq!(drained(&events, 9), [("nack", 1, "no".into()), ("closed", 1, Bytes::new())]);
        assert_eq!(drained(&events, 9), []);
    }

    #[test]
    fn a_stream_that_nobody_heard_of_leaves_nothing() {
        let events = Events::new(Wake::new().unwrap().source());
        let agent: Arc<str> = "spiffe://td/spire/agent/a".into();
        for stream in 0..1000 {
            events.said(&agent, stream, Kind::Hello, "h".into());
            events.closed(stream);
        }
        assert_eq!(drained(&events, 9), []);
        let queue = events.queue();
        assert_eq!((queue.streams.len(), queue.ready.len()), (0, 0));
    }
}
