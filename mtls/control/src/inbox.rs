// SPDX-License-Identifier: Apache-2.0
//! What came from the broker, until Python drains it.
//!
//! Messages are never dropped, because a later one may build on an earlier one: while four wait, no more are read, and
//! the broker replaces what it has not sent. News of the connection replaces older news that nobody has read.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use firedoor_front::WakeSource;
use tokio::sync::Notify;

const MAX_MESSAGES: usize = 4;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEventKind {
    Connected,
    Message,
    Disconnected,
    /// The server speaks no control stream.
    Unsupported,
}

impl ClientEventKind {
    /// The word that Python sees.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Message => "message",
            Self::Disconnected => "disconnected",
            Self::Unsupported => "unsupported",
        }
    }
}

/// One thing that happened: an encoded `FromBroker`, or a reason as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientEvent {
    pub kind: ClientEventKind,
    pub content: Bytes,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    events: Mutex<VecDeque<ClientEvent>>,
    room: Notify,
    wake: WakeSource,
}

impl Inbox {
    pub(crate) fn new(wake: WakeSource) -> Self {
        Self { events: Mutex::default(), room: Notify::new(), wake }
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<ClientEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep news of the connection.
    pub(crate) fn news(&self, kind: ClientEventKind, reason: String) {
        let mut events = self.events();
        while events.back().is_some_and(|last| last.kind != ClientEventKind::Message) {
            events.pop_back();
        }
        events.push_back(ClientEvent { kind, content: reason.into() });
        self.wake.raise();
    }

    /// Keep a message, when there is room for it.
    pub(crate) async fn message(&self, content: Bytes) {
        loop {
            // Before the look at the queue, so that a drain in between is not missed.
            let room = self.room.notified();
            {
                let mut events = self.events();
                let messages = events.iter().filter(|event| event.kind == ClientEventKind::Message);
                if messages.count() < MAX_MESSAGES {
                    events.push_back(ClientEvent { kind: ClientEventKind::Message, content });
                    self.wake.raise();
                    return;
                }
            }
            room.await;
        }
    }

    /// Take up to `limit` events.
    pub(crate) fn drain(&self, limit: usize) -> Vec<ClientEvent> {
        self.wake.lower();
        let mut events = self.events();
        let taken = limit.min(events.len());
        let drained = events.drain(..taken).collect();
        if !events.is_empty() {
            self.wake.raise();
        }
        self.room.notify_one();
        drained
    }
}

#[cfg(test)]
mod tests {
    use firedoor_front::Wake;

    use super::*;

    fn kinds(inbox: &Inbox) -> Vec<&'static str> {
        inbox.drain(99).iter().map(|event| event.kind.as_str()).collect()
    }

    #[test]
    fn only_the_latest_news_waits() {
        let inbox = Inbox::new(Wake::new().unwrap().source());
        for _ in 0..100 {
            inbox.news(ClientEventKind::Connected, String::new());
            inbox.news(ClientEventKind::Disconnected, "gone".into());
        }
        assert_eq!(kinds(&inbox), ["disconnected"]);
    }

    #[test]
    fn messages_wait_for_room() {
        let inbox = Inbox::new(Wake::new().unwrap().source());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for _ in 0..MAX_MESSAGES {
                inbox.message("m".into()).await;
            }
            let late = inbox.message("late".into());
            tokio::pin!(late);
            tokio::select! {
                biased;
                () = &mut late => panic!("there was no room"),
                () = tokio::task::yield_now() => {}
            }
            assert_eq!(inbox.drain(1).len(), 1);
            late.await;
            assert_eq!(kinds(&inbox), ["message"; MAX_MESSAGES]);
        });
    }
}
