// SPDX-License-Identifier: Apache-2.0
//! The relay between plain sockets: what comes from where is taken for an answer, and what is asked at all.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use firedoor_front::{Threads, Wake};
use firedoor_identity::MaterialStore;
use serde_json::Value;

use super::*;
use crate::proxy::Proxy;

const PATIENCE: Duration = Duration::from_secs(20);
const SECOND: Duration = Duration::from_secs(1);

struct World {
    proxy: Proxy,
    relay: Relay,
    // Last, so that what runs on them is gone first.
    _threads: Threads,
}

impl World {
    fn new(names: Option<&[&str]>) -> Self {
        let threads = Threads::start(1).unwrap();
        let proxy = Proxy::new(Arc::<MaterialStore>::default(), &threads, 4096, Wake::new().unwrap().source());
        let names = names.map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
        let relay = proxy.dns_relay(&["127.0.0.1:0".parse().unwrap()], names.as_deref()).unwrap();
        World { proxy, relay, _threads: threads }
    }

    fn asking(resolvers: &[SocketAddr]) -> Self {
        let world = World::new(None);
        world.relay.update(resolvers, SECOND, 1).unwrap();
        world
    }

    /// Ask by UDP, from a socket of its own.
    fn ask(&self, query: &[u8]) -> Vec<u8> {
        let socket = self.client();
        socket.send(query).unwrap();
        receive(&socket)
    }

    fn client(&self) -> UdpSocket {
        let socket = bound();
        socket.connect(self.relay.addresses()[0]).unwrap();
        socket
    }

    fn records(&self) -> Vec<Value> {
        let lines = String::from_utf8(self.proxy.drain_records(100)).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn count(&self, name: &str) -> u64 {
        self.proxy.stats()[name]
    }
}

fn bound() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

/// A query for a name of one label, ID 7.
fn query(label: &str) -> Vec<u8> {
    let length = [u8::try_from(label.len()).unwrap()];
    [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &length, label.as_bytes(), &[0, 0, 1, 0, 1]].concat()
}

/// The answer to a query: this code, and padding so that it has a size.
fn answer(query: &[u8], code: u8, padding: usize) -> Vec<u8> {
    let mut made = query.to_vec();
    (made[2], made[3]) = (0x81, 0x80 | code);
    made.resize(made.len() + padding, 0);
    made
}

/// A resolver that answers each query with the messages that `say` makes of it.
fn resolver(say: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let socket = bound();
    socket.set_read_timeout(Some(PATIENCE / 4)).unwrap();
    let address = socket.local_addr().unwrap();
    let serve = move || {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            if length == 0 {
                return;
            }
            for message in say(&buffer[..length]) {
                socket.send_to(&message, peer).unwrap();
            }
        }
    };
    (address, thread::spawn(serve))
}

fn end((address, thread): (SocketAddr, JoinHandle<()>)) {
    bound().send_to(&[], address).unwrap();
    thread.join().unwrap();
}

fn silent() -> (UdpSocket, SocketAddr) {
    let socket = bound();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn an_answer_has_the_id_of_the_query_and_what_is_asked_another() {
    let (upstream, address) = silent();
    let world = World::asking(&[address]);
    let (mut ids, mut ports) = (vec![], vec![]);
    for _ in 0..8 {
        let client = world.client();
        client.send(&query("a")).unwrap();
        let mut buffer = [0; 512];
        let (length, peer) = upstream.recv_from(&mut buffer).unwrap();
        ids.push([buffer[0], buffer[1]]);
        ports.push(peer.port());
        assert_eq!(buffer[2..length], query("a")[2..]);
        upstream.send_to(&answer(&buffer[..length], 0, 100), peer).unwrap();
        assert_eq!(receive(&client), answer(&query("a"), 0, 100));
    }
    for all in [ids.iter().collect::<std::collections::HashSet<_>>().len(), {
        ports.sort_unstable();
        ports.dedup();
        ports.len()
    }] {
        assert!(all > 4, "eight that are drawn are not the same");
    }
    let records = world.records();
    assert_eq!(records.len(), 8);
    assert_eq!(records[0]["dns"]["name"], "a");
    assert_eq!((&records[0]["dns"]["rcode"], &records[0]["dns"]["type"]), (&"NOERROR".into(), &"A".into()));
    assert_eq!(
        (&records[0]["decision"], &records[0]["peer_address"]),
        (&"allowed".into(), &address.to_string().into())
    );
    assert_eq!((world.count("dns_queries"), world.count("dns_answered"), world.count("decisions")), (8, 8, 8));
}

#[test]
fn what_somebody_else_sends_is_no_answer() {
    let (upstream, address) = silent();
    let world = World::asking(&[address]);
    let client = world.client();
    client.send(&query("a")).unwrap();
    let mut buffer = [0; 512];
    let (length, peer) = upstream.recv_from(&mut buffer).unwrap();
    let good = answer(&buffer[..length], 0, 4);
    // The right ID and question from another port and from another address, then the wrong ones from the resolver.
    let elsewhere = UdpSocket::bind("127.0.0.2:0").unwrap();
    for other in [bound(), elsewhere] {
        other.send_to(&answer(&buffer[..length], 3, 0), peer).unwrap();
    }
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    let other_name = answer(&[&good[..2], &query("b")[2..]].concat(), 0, 4);
    for wrong in [&other_id[..], &other_name, &good[..18], &buffer[..length], b""] {
        upstream.send_to(wrong, peer).unwrap();
    }
    upstream.send_to(&good, peer).unwrap();
    assert_eq!(receive(&client), answer(&query("a"), 0, 4));
    assert_eq!(world.count("dns_unmatched"), 5);
}

#[test]
fn a_flood_of_guesses_gets_a_few_and_the_next_is_asked() {
    let guessing = resolver(|query| {
        let wrong = |n: u8| answer(&[&[query[0] ^ 1, n], &query[2..]].concat(), 0, 0);
        (0..200).map(wrong).chain([answer(query, 3, 0)]).collect()
    });
    let honest = resolver(|query| vec![answer(query, 0, 0)]);
    let world = World::asking(&[guessing.0, honest.0]);
    assert_eq!(world.ask(&query("a")), answer(&query("a"), 0, 0));
    assert_eq!(world.count("dns_unmatched"), 16);
    end(guessing);
    end(honest);
}

#[test]
fn a_silent_resolver_is_left_for_the_next_and_then_nobody_knows() {
    let (_held, nobody) = silent();
    let known = resolver(|query| vec![answer(query, 0, 0)]);
    let world = World::asking(&[nobody, known.0]);
    assert_eq!(world.ask(&query("a"))[3] & 0xf, 0);
    assert_eq!(world.records()[0]["peer_address"], known.0.to_string());
    world.relay.update(&[nobody], SECOND, 1).unwrap();
    assert_eq!(world.ask(&query("a"))[3] & 0xf, 2);
    world.relay.update(&[], SECOND, 1).unwrap();
    assert_eq!(world.ask(&query("a")), answer(&query("a"), 2, 0), "nobody is asked");
    let records = world.records();
    assert_eq!((&records[1]["dns"]["rcode"], &records[1]["peer_address"]), (&"SERVFAIL".into(), &"".into()));
    assert_eq!(world.count("dns_failed"), 2);
    end(known);
}

#[test]
fn one_that_cannot_say_is_believed_when_nobody_knows_better() {
    let refusing = resolver(|query| vec![answer(query, 5, 0)]);
    let world = World::asking(&[refusing.0]);
    assert_eq!(world.ask(&query("a"))[3] & 0xf, 5);
    let known = resolver(|query| vec![answer(query, 3, 0)]);
    world.relay.update(&[refusing.0, known.0], SECOND, 1).unwrap();
    assert_eq!(world.ask(&query("a"))[3] & 0xf, 3, "that there is no such name is an answer");
    end(refusing);
    end(known);
}

#[test]
fn what_is_no_query_or_not_listed_is_not_sent_on() {
    let (upstream, address) = silent();
    let world = World::new(Some(&["listed"]));
    world.relay.update(&[address], SECOND, 1).unwrap();
    let client = world.client();
    for (message, code) in [
        (query("other"), 5),
        ([&query("listed")[..], b"more"].concat(), 1),
        ([&[0, 7, 0x28], &query("listed")[3..]].concat(), 4),
        ([&query("listed")[..19], &[0, 0, 252, 0, 1]].concat(), 5),
    ] {
        client.send(&message).unwrap();
        let said = receive(&client);
        assert_eq!((said[..2].to_vec(), said[3] & 0xf), (vec![0, 7], code), "{message:?}");
    }
    for silence in [&b""[..], b"short", &answer(&query("listed"), 0, 0)] {
        client.send(silence).unwrap();
    }
    client.send(&query("LISTED")).unwrap();
    let asked = receive(&upstream);
    assert_eq!(asked[2..], query("LISTED")[2..], "and nothing before it");
    let records = world.records();
    assert_eq!(records[0]["dns"]["name"], "other");
    assert_eq!((&records[0]["decision"], &records[0]["reason"]), (&"denied".into(), &"dns_name_not_listed".into()));
    assert_eq!(records[1]["reason"], "dns_unsupported");
    assert_eq!((records.len(), world.count("dns_refused"), world.count("dns_malformed")), (2, 2, 5));
    assert_eq!(world.count("denied_dns_name_not_listed"), 1);
}

#[test]
fn one_socket_has_its_share_and_others_theirs() {
    let (upstream, address) = silent();
    let world = World::asking(&[address]);
    world.relay.update(&[address], 30 * SECOND, 1).unwrap();
    let flood = world.client();
    for _ in 0..100 {
        flood.send(&query("a")).unwrap();
    }
    // What was sent before is read before: after this one, all of the flood has been.
    let other = world.client();
    other.send(&query("b")).unwrap();
    let mut buffer = [0; 512];
    loop {
        let (length, peer) = upstream.recv_from(&mut buffer).unwrap();
        if buffer[13] == b'b' {
            upstream.send_to(&answer(&buffer[..length], 0, 0), peer).unwrap();
            break;
        }
    }
    assert_eq!(receive(&other), answer(&query("b"), 0, 0));
    assert_eq!(world.count("dns_dropped"), 36);
}

#[test]
fn what_is_longer_than_the_client_takes_is_asked_by_tcp() {
    let long = resolver(|query| vec![answer(query, 0, 600)]);
    let by_tcp = TcpListener::bind(long.0).unwrap();
    let world = World::asking(&[long.0]);
    let truncated = world.ask(&query("a"));
    assert_eq!((truncated.len(), truncated[2] & 2), (query("a").len(), 2));
    let upstream = thread::spawn(move || {
        let (mut link, _) = by_tcp.accept().unwrap();
        let asked = read_framed(&mut link);
        link.write_all(&framed(&answer(&asked, 0, 60_000))).unwrap();
    });
    let mut client = TcpStream::connect(world.relay.addresses()[0]).unwrap();
    // A message may come in pieces.
    for piece in framed(&query("a")).chunks(3) {
        client.write_all(piece).unwrap();
    }
    assert_eq!(read_framed(&mut client), answer(&query("a"), 0, 60_000));
    upstream.join().unwrap();
    let records = world.records();
    assert_eq!((&records[0]["dns"]["transport"], &records[1]["dns"]["transport"]), (&"udp".into(), &"tcp".into()));
    assert_eq!(records[1]["client"]["uid"], rustix::process::getuid().as_raw());
    end(long);
}

fn framed(message: &[u8]) -> Vec<u8> {
    upstream::framed(message)
}

fn read_framed(link: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    link.read_exact(&mut length).unwrap();
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    link.read_exact(&mut message).unwrap();
    message
}

#[test]
fn a_connection_that_says_something_else_ends() {
    let world = World::new(None);
    for (sent, said) in [
        (framed(&vec![0; 5000]), 0),
        (framed(b"short"), 0),
        (framed(&answer(&query("a"), 0, 0)), 0),
        // Answered, and then it ends because we say nothing more.
        (framed(&[&query("a")[..], b"more"].concat()), 14),
    ] {
        let mut client = TcpStream::connect(world.relay.addresses()[0]).unwrap();
        client.write_all(&sent).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut found = vec![];
        // What was not read any more makes the end a reset.
        _ = client.read_to_end(&mut found);
        assert_eq!(found.len(), said);
    }
}

#[test]
fn connections_have_a_cap() {
    let world = World::new(None);
    let all: Vec<_> = (0..40).map(|_| TcpStream::connect(world.relay.addresses()[0]).unwrap()).collect();
    // Accepted in their order: when the last one has been closed, the others have been looked at.
    let mut last = all.last().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(last.read(&mut [0; 1]).is_err(), "a reset");
    assert_eq!(world.count("dns_dropped"), 8);
}

#[test]
fn resolvers_that_are_none_change_nothing() {
    let world = World::new(None);
    let own = world.relay.addresses()[0];
    let same_port = format!("[::1]:{}", own.port());
    for wrong in [own.to_string(), same_port, "0.0.0.0:53".into(), "[::]:53".into(), "224.0.0.251:53".into()] {
        assert!(world.relay.update(&[wrong.parse().unwrap()], SECOND, 1).is_err(), "{wrong}");
    }
    let many = vec!["192.0.2.1:53".parse().unwrap(); 9];
    assert!(world.relay.update(&many, SECOND, 1).is_err());
    world.relay.update(&["127.0.0.53:53".parse().unwrap()], SECOND, 1).unwrap();
}

#[test]
fn what_cannot_be_opened_says_why() {
    let world = World::new(None);
    let taken = world.relay.addresses()[0];
    let open = |listen: &str, names: Option<&[String]>| {
        world.proxy.dns_relay(&[listen.parse().unwrap()], names).map(|_| ()).unwrap_err()
    };
    assert_eq!(open(&taken.to_string(), None).code, "bind");
    assert_eq!(open("0.0.0.0:0", None).code, "bad_dns_relay");
    assert_eq!(open("127.0.0.1:0", Some(&["a.**".into()])).code, "bad_dns_name");
    world.relay.stop();
    let client = bound();
    client.connect(taken).unwrap();
    // Closed by the thread that served it, a moment later.
    loop {
        if client.send(&query("a")).is_err() || client.recv(&mut [0; 512]).is_err() {
            break;
        }
    }
}
