// SPDX-License-Identifier: Apache-2.0
//! Signing what a CA of ours says, with a key that is in memory.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair};

/// A P-256 or P-384 key. It signs with the hash that is as strong as its curve (RFC 5480 section 4).
#[derive(Debug)]
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl SigningKey {
    /// Take a key as PKCS#8 DER; none of another kind.
    pub fn parse(pkcs8: &[u8]) -> Option<Self> {
        let curves = [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING];
        let pair = curves.into_iter().find_map(|curve| EcdsaKeyPair::from_pkcs8(curve, pkcs8).ok())?;
        Some(Self { pair, random: SystemRandom::new() })
    }

    /// Sign a message; none when the system has no random numbers.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.pair.sign(&self.random, message).ok().map(|signature| signature.as_ref().to_vec())
    }
}
