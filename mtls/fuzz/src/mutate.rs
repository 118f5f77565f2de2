// SPDX-License-Identifier: Apache-2.0
//! Random changes to bytes.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// Longest input, in bytes.
const MAX_INPUT: usize = 64 << 10;
/// Where lengths, signs and codes like to go wrong.
const EDGES: [u8; 10] = [0x00, 0x01, 0x2f, 0x30, 0x7f, 0x80, 0x81, 0x84, 0xfe, 0xff];

/// xorshift64*: small, fast, and the same everywhere for the same seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn from_system() -> Self {
        Self::new(RandomState::new().build_hasher().finish())
    }

    /// What `--seed` takes to do the same again.
    pub fn seed(&self) -> u64 {
        self.0
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`; 0 for 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The remainder fits, because the bound does.
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

/// Change an input in one to eight places, with pieces of another input and of the target's words.
pub fn mutate(input: &[u8], other: &[u8], words: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + random.below(8) {
        change(&mut bytes, other, words, random);
    }
    bytes.truncate(MAX_INPUT);
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    match random.below(8) {
        0 => flip(bytes, at, random),
        1 => set(bytes, at, EDGES[random.below(EDGES.len())]),
        2 => set(bytes, at, random.byte()),
        3 => _ = bytes.splice(at..at, [random.byte()]),
        4 => _ = bytes.drain(piece(bytes.len(), at, 16, random)),
        5 => {
            let copied = bytes[piece(bytes.len(), at, 64, random)].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, copied);
        }
        6 => {
            let from = random.below(other.len() + 1);
            let copied = other[piece(other.len(), from, 256, random)].to_vec();
            let replaced = piece(bytes.len(), at, copied.len(), random);
            bytes.splice(replaced, copied);
        }
        _ => {
            let word = words.get(random.below(words.len())).copied().unwrap_or_default();
            bytes.splice(at..at, word.iter().copied());
        }
    }
}

fn flip(bytes: &mut [u8], at: usize, random: &mut Random) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << random.below(8);
    }
}

fn set(bytes: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value;
    }
}

/// A range that starts at `at` and is at most `longest` long.
fn piece(length: usize, at: usize, longest: usize, random: &mut Random) -> std::ops::Range<usize> {
    at..at + random.below(longest.min(length - at) + 1)
}
