// SPDX-License-Identifier: Apache-2.0
//! Asking one resolver once: a socket and an ID for this query alone.
//!
//! The kernel draws the socket's port (RFC 5452, 9.2, asks for both to be random) and hears the one address that it is
//! connected to; what comes from there counts with the right ID and question. After a few that are wrong the socket is
//! given up: who sends a flood of guesses gets that many, and has to find the next port.

use std::io;
use std::net::SocketAddr;

use aws_lc_rs::rand;
use firedoor_dns::{MAX_ANSWER, Query};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::counters::Counters;

/// An answer of before that came late, or a guess; 16 of 65,536 IDs.
const MAX_UNMATCHED: u32 = 16;

/// How a query came, and how it is sent on: who got a truncated answer by UDP asks by TCP for what is longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        }
    }
}

/// Ask, and wait for the answer however long it takes.
pub(crate) async fn ask(
    transport: Transport,
    resolver: SocketAddr,
    query: &Query,
    counters: &Counters,
) -> io::Result<Vec<u8>> {
    let id = random_id()?;
    let onward = query.onward(id);
    match transport {
        Transport::Udp => by_udp(resolver, &onward, |answer| query.is_answered_by(answer, id), counters).await,
        Transport::Tcp => {
            let answer = by_tcp(resolver, &onward).await?;
            if query.is_answered_by(&answer, id) {
                return Ok(answer);
            }
            Counters::add(&counters.unmatched);
            Err(unmatched())
        }
    }
}

async fn by_udp(
    resolver: SocketAddr,
    query: &[u8],
    is_answer: impl Fn(&[u8]) -> bool,
    counters: &Counters,
) -> io::Result<Vec<u8>> {
    let socket = Socket::new(Domain::for_address(resolver), Type::DGRAM.nonblocking().cloexec(), None)?;
    socket.connect(&resolver.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.send(query).await?;
    // One octet more than may come shows what is too long.
    let mut buffer = vec![0; MAX_ANSWER + 1];
    for _ in 0..MAX_UNMATCHED {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(&buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
        Counters::add(&counters.unmatched);
    }
    Err(unmatched())
}

async fn by_tcp(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    stream.write_all(&framed(query)).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// RFC 1035, 4.2.2: two octets of length before each message. In one piece, as RFC 7766, 8, has it.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], &message[..usize::from(length)]].concat()
}

fn random_id() -> io::Result<u16> {
    let mut octets = [0; 2];
    rand::fill(&mut octets).map_err(|_| io::Error::other("the system gives no randomness"))?;
    Ok(u16::from_be_bytes(octets))
}

fn unmatched() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what came is no answer to the query")
}
