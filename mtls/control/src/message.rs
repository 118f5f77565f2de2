// SPDX-License-Identifier: Apache-2.0
//! Messages as bytes, in gRPC's framing.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};

/// Where the stream stands, by gRPC's rule for paths.
pub(crate) const PATH: &str = "/firedoor.control.v1.Control/Stream";
/// The ALPN of the control stream.
pub(crate) const ALPN: &[u8] = b"firedoor-control/1";

/// Largest message of a sidecar. An Ack of 5,000 SVIDs takes about half of it.
pub const MAX_FROM_SIDECAR: usize = 1 << 20;
/// Largest Hello and Nack: a few words.
const MAX_WORDS: usize = 64 << 10;
/// Largest message of a broker, a full view.
pub const MAX_FROM_BROKER: usize = 64 << 20;

/// What a sidecar says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Hello,
    Ack,
    Nack,
}

/// `FromSidecar` without looking into its parts.
#[derive(Clone, PartialEq, prost::Message)]
struct FromSidecar {
    #[prost(oneof = "Part", tags = "1, 2, 3")]
    part: Option<Part>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Part {
    #[prost(bytes = "bytes", tag = "1")]
    Hello(Bytes),
    #[prost(bytes = "bytes", tag = "2")]
    Ack(Bytes),
    #[prost(bytes = "bytes", tag = "3")]
    Nack(Bytes),
}

/// Say what a sidecar's message is; an error for one that is none, unknown or too large for its kind.
pub fn kind(message: &Bytes) -> Result<Kind, Status> {
    let decoded = FromSidecar::decode(message.clone()).map_err(|_| Status::invalid_argument("not a FromSidecar"))?;
    match decoded.part {
        Some(Part::Hello(words)) if words.len() <= MAX_WORDS => Ok(Kind::Hello),
        Some(Part::Nack(words)) if words.len() <= MAX_WORDS => Ok(Kind::Nack),
        Some(Part::Ack(_)) => Ok(Kind::Ack),
        Some(_) => Err(Status::resource_exhausted("the message is too large")),
        None => Err(Status::invalid_argument("the message is of no known kind")),
    }
}

/// Put a message into gRPC's frame: no compression, length, bytes.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    // Callers have checked the message against a cap far below 4 GiB.
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// Takes messages out of their frames and leaves them as they are.
#[derive(Debug, Default)]
pub(crate) struct Unread;

/// A sidecar's messages are small and rare; a stream that is silent should own little.
const READ_BUFFER: usize = 1 << 10;

impl Decoder for Unread {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(READ_BUFFER, READ_BUFFER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length_delimited(tag: u8, length: usize) -> Bytes {
        let mut message = vec![tag << 3 | 2];
        prost::encode_length_delimiter(length, &mut message).unwrap();
        message.resize(message.len() + length, b'x');
        message.into()
    }

    #[test]
    fn the_kind_is_read_and_no_more() {
        let cases = [
            (length_delimited(1, 0), Ok(Kind::Hello)),
            (length_delimited(2, 3), Ok(Kind::Ack)),
            (length_delimited(3, 3), Ok(Kind::Nack)),
            (length_delimited(1, MAX_WORDS), Ok(Kind::Hello)),
            (length_delimited(1, MAX_WORDS + 1), Err(tonic::Code::ResourceExhausted)),
            (length_delimited(3, MAX_WORDS + 1), Err(tonic::Code::ResourceExhausted)),
            (length_delimited(2, MAX_WORDS + 1), Ok(Kind::Ack)),
            (length_delimited(4, 0), Err(tonic::Code::InvalidArgument)),
            (Bytes::new(), Err(tonic::Code::InvalidArgument)),
            (Bytes::from_static(b"\xff"), Err(tonic::Code::InvalidArgument)),
            (Bytes::from_static(b"\x0a\x7f"), Err(tonic::Code::InvalidArgument)),
            (Bytes::from_static(b"\x08\x01"), Err(tonic::Code::InvalidArgument)),
        ];
        for (message, expected) in cases {
            assert_eq!(
                kind(&message).map_err(|status| status.code()),
                expected,
                "{:?}",
                &message[..message.len().min(8)]
            );
        }
    }
}
