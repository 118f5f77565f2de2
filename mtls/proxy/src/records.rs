// SPDX-License-Identifier: Apache-2.0
//! Decision records: one a connection or request at each end, kept in a bounded ring until somebody drains them.
//!
//! A quarter of the ring takes denials alone, so that a busy allowed listener cannot push them out, and half of it no
//! DNS queries, which cost a program next to nothing. What finds no room is counted, never waited for: `decisions = drained + waiting + lost` at every moment. Who may let nothing
//! pass without its record asks for a promise of room first.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use firedoor_front::WakeSource;
use serde::Serialize;

use crate::time;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Allowed,
    Denied,
    /// No flow allows it; it passed because the segment is in audit mode.
    Audit,
}

/// Which end of the mTLS connection decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Inbound,
    Outbound,
}

/// The local client of an outbound connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ClientId {
    pub uid: u32,
    /// None over TCP, where the kernel names no process.
    pub pid: Option<u32>,
}

/// A value that both ends can derive from a TLS connection, and which request of the connection it is: the stream
/// of HTTP/2, or the number of a request of HTTP/1.1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Correlation {
    pub link: Option<Arc<str>>,
    pub request: Option<u64>,
}

impl fmt::Display for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.link.as_deref().unwrap_or_default())?;
        match self.request {
            Some(request) => write!(f, "-{request}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Correlation {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// What a DNS query asked for, and what was answered.
#[derive(Debug, Clone, Serialize)]
pub struct Asked {
    /// In printable ASCII, 1020 octets at most: four for each octet of a name.
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    pub transport: &'static str,
    pub rcode: Cow<'static, str>,
    /// From the query to the answer.
    pub microseconds: u64,
}

/// One decision. Unknown parts are empty, so that every line has every field.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    #[serde(serialize_with = "time::serialize")]
    /// Since 1970.
    pub time: Duration,
    pub direction: Direction,
    pub listener: Arc<str>,
    /// The same at both ends of one connection or request; proves nothing.
    pub correlation: Correlation,
    pub source: Arc<str>,
    pub source_segment: Arc<str>,
    pub destination: Arc<str>,
    pub destination_segment: Arc<str>,
    pub port: u16,
    pub protocol: &'static str,
    /// Of a request that could be read.
    pub method: Arc<str>,
    /// As it came, without the query, which may hold credentials.
    pub path: Arc<str>,
    pub decision: Outcome,
    pub flow: Arc<str>,
    pub reason: &'static str,
    #[serde(serialize_with = "peer_address")]
    pub peer_address: Option<SocketAddr>,
    /// Of the certificate that the peer proved to hold, as revocations name it: lower-case hex.
    pub peer_serial: Arc<str>,
    /// (epoch, number) of the policy, as the broker counts.
    pub generation: (u64, u64),
    /// The material, as this process counts.
    pub revision: u64,
    pub client: Option<ClientId>,
    /// One of both ends is of a segment that is for emergencies.
    #[serde(skip_serializing_if = "is_not")]
    pub alert: bool,
    /// Of a DNS query alone; `peer_address` is then the resolver that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Box<Asked>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_not(value: &bool) -> bool {
    !value
}

fn peer_address<S: serde::Serializer>(address: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => to.collect_str(address),
        None => to.serialize_str(""),
    }
}

/// How many decisions there were and what became of their records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordCounts {
    pub decisions: u64,
    pub drained: u64,
    pub waiting: u64,
    pub lost: u64,
}

/// How many decisions came to what, whether their records were kept or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub allowed: u64,
    pub audit: u64,
    /// Of all, those with an end in a segment that is for emergencies.
    pub alerts: u64,
    pub denied: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct Ring {
    waiting: VecDeque<Record>,
    /// Places that are kept for records to come.
    promised: usize,
    tally: Tally,
    decisions: u64,
    drained: u64,
    lost: u64,
}

impl Ring {
    fn taken(&self) -> usize {
        self.waiting.len() + self.promised
    }

    fn count(&mut self, record: &Record) {
        self.decisions += 1;
        self.tally.alerts += u64::from(record.alert);
        match record.decision {
            Outcome::Allowed => self.tally.allowed += 1,
            Outcome::Audit => self.tally.audit += 1,
            Outcome::Denied => *self.tally.denied.entry(record.reason).or_default() += 1,
        }
    }
}

/// The ring. Shared by all data threads.
pub struct Records {
    ring: Mutex<Ring>,
    capacity: usize,
    wake: WakeSource,
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("capacity", &self.capacity).field("counts", &self.counts()).finish()
    }
}

impl Records {
    /// Make a ring for `capacity` records (at least 4). `wake` is raised while records wait.
    #[must_use]
    pub fn new(capacity: usize, wake: WakeSource) -> Self {
        Records { ring: Mutex::default(), capacity: capacity.max(4), wake }
    }

    /// Keep a record, or count it as lost.
    pub fn push(&self, record: Record) {
        let mut ring = self.lock();
        ring.count(&record);
        let room = if record.dns.is_some() { self.capacity / 2 } else { self.room_for(record.decision) };
        if ring.taken() >= room {
            ring.lost += 1;
            return;
        }
        self.keep(ring, record);
    }

    /// Keep a place for a record that must not be lost; None while there is no room.
    pub fn promise(self: &Arc<Self>) -> Option<Promise> {
        let mut ring = self.lock();
        if ring.taken() >= self.room_for(Outcome::Allowed) {
            return None;
        }
        ring.promised += 1;
        Some(Promise { records: self.clone() })
    }

    fn keep(&self, mut ring: MutexGuard<'_, Ring>, record: Record) {
        ring.waiting.push_back(record);
        if ring.waiting.len() == 1 {
            self.wake.raise();
        }
    }

    /// Take up to `limit` records as JSON lines, oldest first.
    pub fn drain(&self, limit: usize) -> Vec<u8> {
        let batch = self.take(limit);
        let mut lines = Vec::with_capacity(batch.len() * 512);
        for record in &batch {
            // Nothing in a record can fail to be JSON, and a Vec takes everything.
            if serde_json::to_writer(&mut lines, record).is_ok() {
                lines.push(b'\n');
            }
        }
        lines
    }

    fn take(&self, limit: usize) -> Vec<Record> {
        let mut ring = self.lock();
        let count = limit.min(ring.waiting.len());
        ring.drained += count as u64;
        let batch = ring.waiting.drain(..count).collect();
        if ring.waiting.is_empty() {
            self.wake.lower();
        }
        batch
    }

    /// How many decisions of each kind there were; denials by reason.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.lock().tally.clone()
    }

    #[must_use]
    pub fn counts(&self) -> RecordCounts {
        let ring = self.lock();
        RecordCounts {
            decisions: ring.decisions,
            drained: ring.drained,
            waiting: ring.waiting.len() as u64,
            lost: ring.lost,
        }
    }

    fn room_for(&self, decision: Outcome) -> usize {
        match decision {
            Outcome::Denied => self.capacity,
            Outcome::Allowed | Outcome::Audit => self.capacity - self.capacity / 4,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the ring; given back when dropped.
#[derive(Debug)]
pub struct Promise {
    records: Arc<Records>,
}

impl Promise {
    /// Keep a record in this place.
    pub fn push(self, record: Record) {
        let mut ring = self.records.lock();
        ring.count(&record);
        self.records.keep(ring, record);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.records.lock().promised -= 1;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use firedoor_front::Wake;

    use super::*;

    pub(crate) fn ring(capacity: usize) -> Records {
        Records::new(capacity, Wake::new().unwrap().source())
    }

    pub(crate) fn record(decision: Outcome) -> Record {
        Record {
            time: Duration::from_millis(1_700_000_000_250),
            direction: Direction::Inbound,
            listener: "models".into(),
            correlation: Correlation { link: Some("00ff".into()), request: None },
            source: "spiffe://td/a".into(),
            source_segment: "a".into(),
            destination: "spiffe://td/b".into(),
            destination_segment: "b".into(),
            port: 9000,
            protocol: "tcp",
            method: "".into(),
            path: "".into(),
            decision,
            flow: "f".into(),
            reason: "allowed",
            peer_address: Some("127.0.0.1:5".parse().unwrap()),
            peer_serial: "0a".into(),
            generation: (1, 2),
            revision: 3,
            client: None,
            alert: false,
            dns: None,
        }
    }

    pub(crate) fn query(decision: Outcome) -> Record {
        let name = "s3.example.org".to_owned();
        let asked = Asked { name, kind: "A".into(), transport: "udp", rcode: "NOERROR".into(), microseconds: 81 };
        Record { dns: Some(Box::new(asked)), ..record(decision) }
    }

    #[test]
    fn an_alert_says_so_and_is_counted() {
        let records = ring(8);
        records.push(Record { alert: true, ..record(Outcome::Denied) });
        records.push(record(Outcome::Allowed));
        let lines = String::from_utf8(records.drain(10)).unwrap();
        let said: Vec<bool> = lines.lines().map(|line| line.ends_with(r#","alert":true}"#)).collect();
        assert_eq!((said, records.tally().alerts), (vec![true, false], 1));
    }

    #[test]
    fn a_record_is_one_line_with_every_field() {
        let records = ring(8);
        records.push(Record {
            peer_address: None,
            client: Some(ClientId { uid: 5, pid: None }),
            correlation: Correlation { link: Some("00ff".into()), request: Some(7) },
            ..record(Outcome::Allowed)
        });
        let lines = String::from_utf8(records.drain(10)).unwrap();
        assert_eq!(
            lines,
            concat!(
                r#"{"time":"2023-11-14T22:13:20.250Z","direction":"inbound","listener":"models","correlation":"00ff-7","#,
                r#""source":"spiffe://td/a","source_segment":"a","destination":"spiffe://td/b","#,
                r#""destination_segment":"b","port":9000,"protocol":"tcp","method":"","path":"","decision":"allowed","flow":"f","#,
                r#""reason":"allowed","peer_address":"","peer_serial":"0a","generation":[1,2],"revision":3,"#,
                r#""client":{"uid":5,"pid":null}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_quarter_is_kept_for_denials() {
        let records = ring(8);
        for _ in 0..7 {
            records.push(record(Outcome::Allowed));
        }
        assert_eq!(records.counts(), RecordCounts { decisions: 7, waiting: 6, lost: 1, drained: 0 });
        for _ in 0..3 {
            records.push(record(Outcome::Denied));
        }
        assert_eq!(records.counts(), RecordCounts { decisions: 10, waiting: 8, lost: 2, drained: 0 });
    }

    #[test]
    fn a_query_is_at_the_end_of_its_line() {
        let records = ring(8);
        records.push(query(Outcome::Allowed));
        let line = String::from_utf8(records.drain(10)).unwrap();
        let end = concat!(
            r#","client":null,"dns":{"name":"s3.example.org","type":"A","transport":"udp","rcode":"NOERROR","#,
            r#""microseconds":81}}"#,
            "\n"
        );
        assert!(line.ends_with(end), "{line}");
    }

    #[test]
    fn half_is_kept_from_queries() {
        let records = ring(8);
        for decision in [Outcome::Denied, Outcome::Allowed].repeat(4) {
            records.push(query(decision));
        }
        assert_eq!(records.counts(), RecordCounts { decisions: 8, waiting: 4, lost: 4, drained: 0 });
        records.push(record(Outcome::Allowed));
        assert_eq!(records.counts(), RecordCounts { decisions: 9, waiting: 5, lost: 4, drained: 0 });
    }

    #[test]
    fn a_promise_keeps_its_place() {
        let records = Arc::new(ring(4));
        let promises: Vec<_> = (0..3).map(|_| records.promise().unwrap()).collect();
        assert!(records.promise().is_none(), "the last quarter is for denials");
        records.push(record(Outcome::Allowed));
        records.push(record(Outcome::Denied));
        assert_eq!(records.counts(), RecordCounts { decisions: 2, waiting: 1, lost: 1, drained: 0 });
        for promise in promises {
            promise.push(record(Outcome::Allowed));
        }
        assert_eq!(records.counts(), RecordCounts { decisions: 5, waiting: 4, lost: 1, drained: 0 });
        assert!(records.promise().is_none());
        records.drain(4);
        drop(records.promise().unwrap());
        assert_eq!(records.lock().promised, 0);
    }

    #[test]
    fn the_event_stays_raised_while_records_wait() {
        let wake = Wake::new().unwrap();
        let readable = || {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", wake.raw_fd())).unwrap();
            info.lines().any(|line| line.starts_with("eventfd-count:") && line.ends_with('1'))
        };
        let records = Records::new(8, wake.source());
        assert!(!readable());
        for _ in 0..3 {
            records.push(record(Outcome::Denied));
        }
        assert!(readable());
        records.drain(2);
        assert!(readable());
        records.drain(2);
        assert!(!readable());
    }

    #[test]
    fn records_and_losses_are_all_decisions_under_concurrency() {
        let records = Arc::new(ring(64));
        let writers: Vec<_> = (0..4)
            .map(|n| {
                let records = Arc::clone(&records);
                std::thread::spawn(move || {
                    for i in 0..5_000 {
                        let denied = (n + i) % 3 == 0;
                        records.push(record(if denied { Outcome::Denied } else { Outcome::Allowed }));
                    }
                })
            })
            .collect();
        let mut lines = 0;
        while lines < 2_000 || writers.iter().any(|w| !w.is_finished()) {
            lines += records.drain(7).iter().filter(|b| **b == b'\n').count() as u64;
            if writers.iter().all(|w| w.is_finished()) && records.counts().waiting == 0 {
                break;
            }
        }
        for writer in writers {
            writer.join().unwrap();
        }
        lines += records.drain(usize::MAX).iter().filter(|b| **b == b'\n').count() as u64;
        let counts = records.counts();
        assert_eq!(counts.decisions, 20_000);
        assert_eq!(counts.waiting, 0);
        assert_eq!(counts.drained, lines);
        assert_eq!(lines + counts.lost, counts.decisions);
    }
}
