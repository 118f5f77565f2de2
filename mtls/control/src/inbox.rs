// SPDX-License-Identifier: Apache-2.0
//! What came from the broker, until Python drains it.
//!
//! Messages are never dropped, because a later one may build on an earlier one: while four wait, no more are read, and
//! the broker replaces what it has not sent. News of the connection replaces older news that nobody has read.
//!
//! What Python sends goes to the stream of the latest news that it has read: on one that it does not know yet, which
//! must begin with a Hello, an answer to the one before would come first.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use firedoor_front::WakeSource;
use tokio::sync::{Notify, mpsc};

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

/// Takes what is to leave on one stream, for as long as whoever runs that holds it.
pub(crate) type Sender = mpsc::Sender<Bytes>;
type WeakSender = mpsc::WeakSender<Bytes>;

#[derive(Debug)]
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    room: Notify,
    wake: WakeSource,
}

#[derive(Debug, Default)]
struct Queue {
    /// With what it opened.
    events: VecDeque<(ClientEvent, Option<WeakSender>)>,
    /// Of the news that was taken last; None when it was of an end.
    sender: Option<WeakSender>,
}

impl Inbox {
    pub(crate) fn new(wake: WakeSource) -> Self {
        Self { queue: Mutex::default(), room: Notify::new(), wake }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep the news of a stream that has opened.
    pub(crate) fn opened(&self, peer: String, sender: &Sender) {
        self.news(ClientEvent { kind: ClientEventKind::Connected, content: peer.into() }, Some(sender.downgrade()));
    }

    /// Keep the news of an end.
    pub(crate) fn ended(&self, kind: ClientEventKind, reason: String) {
        self.news(ClientEvent { kind, content: reason.into() }, None);
    }

    fn news(&self, event: ClientEvent, sender: Option<WeakSender>) {
        let mut queue = self.queue();
        while queue.events.back().is_some_and(|(last, _)| last.kind != ClientEventKind::Message) {
            queue.events.pop_back();
        }
        queue.events.push_back((event, sender));
        self.wake.raise();
    }

    /// Keep a message, when there is room for it.
    pub(crate) async fn message(&self, content: Bytes) {
        loop {
            // Before the look at the queue, so that a drain in between is not missed.
            let room = self.room.notified();
            {
                let mut queue = self.queue();
                let messages = queue.events.iter().filter(|(event, _)| event.kind == ClientEventKind::Message);
                if messages.count() < MAX_MESSAGES {
                    queue.events.push_back((ClientEvent { kind: ClientEventKind::Message, content }, None));
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
        let mut queue = self.queue();
        let Queue { events, sender: present } = &mut *queue;
        let taken = limit.min(events.len());
        let mut drained = Vec::with_capacity(taken);
        for (event, sender) in events.drain(..taken) {
            if event.kind != ClientEventKind::Message {
                *present = sender;
            }
            drained.push(event);
        }
        if !events.is_empty() {
            self.wake.raise();
        }
        self.room.notify_one();
        drained
    }

    /// Send on the stream of the news that was taken last; dropped when it is over or stuck, or there is none.
    pub(crate) fn send(&self, framed: Bytes) {
        if let Some(sender) = self.queue().sender.as_ref().and_then(WeakSender::upgrade) {
            _ = sender.try_send(framed);
        }
    }

    /// Send nothing more.
    pub(crate) fn close(&self) {
        self.queue().sender = None;
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
            inbox.opened(String::new(), &mpsc::channel(1).0);
            inbox.ended(ClientEventKind::Disconnected, "gone".into());
        }
        assert_eq!(kinds(&inbox), ["disconnected"]);
    }

    #[test]
    fn what_is_sent_goes_to_the_stream_that_is_known() {
        let inbox = Inbox::new(Wake::new().unwrap().source());
        let (mut streams, mut senders) = (Vec::new(), Vec::new());
        for known in [true, false] {
            let (sender, receiver) = mpsc::channel(2);
            inbox.opened(String::new(), &sender);
            streams.push(receiver);
            senders.push(sender);
            inbox.send(Bytes::from_static(if known { b"before" } else { b"to the first" }));
            if known {
                assert_eq!(kinds(&inbox), ["connected"]);
            }
        }
        assert_eq!(streams[0].try_recv().unwrap(), "to the first");
        assert_eq!(kinds(&inbox), ["connected"]);
        inbox.send(Bytes::from_static(b"to the second"));
        assert_eq!(streams[1].try_recv().unwrap(), "to the second");
        inbox.ended(ClientEventKind::Disconnected, "gone".into());
        assert_eq!(kinds(&inbox), ["disconnected"]);
        inbox.send(Bytes::from_static(b"to nobody"));
        assert!(streams.iter_mut().all(|receiver| receiver.try_recv().is_err()));
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
