# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in `firedoor.certs`, split by whose fault it is.

    CertsError
    ├── CallerError              the value that was handed in breaks a rule
    │   ├── SpiffeIdError        a SPIFFE ID or trust domain name
    │   ├── PatternError         an ID pattern
    │   ├── DnsPatternError      a pattern of hosts' names
    │   ├── SelectorError        a selector
    │   ├── FingerprintError     a fingerprint
    │   ├── IssueError           a request that no certificate may be made for
    │   ├── BundleError          a trust bundle
    │   ├── EvidenceError        what a node sends to prove that it holds a certificate's key
    │   └── AuthorityError       an event that the authority's state does not allow
    ├── PeerError
    │   ├── SvidError            an X.509-SVID or its chain, as a peer presents it
    │   ├── JwtSvidError         a JWT-SVID, as a peer presents it
    │   ├── CrlError             a revocation list, as somebody hands it on
    │   ├── WitSvidError         a WIT-SVID, as a peer presents it
    │   ├── NodeCertificateError a node's certificate, as a node presents it
    │   ├── PodTokenError        a service account's token, as a pod presents it
    │   └── SshCertificateError  a host's SSH certificate, as a node presents it
    └── OurError
        ├── KeyManagerError      a key that is missing, damaged or locked
        │   └── KeyManagerAway   the device or service that holds keys does not answer
        └── JournalError         an authority journal that cannot be read back

`code` is stable, and shared with the Rust core where both check the same thing (tests/vectors); `str()` is a sentence
for the person who must act. Neither ever holds a key, a token or a selector's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

Fault = Literal["caller", "peer", "us"]


class CertsError(Exception):
    """Base of all. Raise a leaf."""

    fault: ClassVar[Fault] = "us"
    # The name of the gRPC status that a server answers with.
    grpc_status: ClassVar[str] = "INTERNAL"
    # One sentence a code. A leaf may be raised only with a code that stands here.
    sentences: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, code: str, detail: str = "") -> None:
        sentence = self.sentences[code]
        super().__init__(f"{sentence}: {detail}" if detail else sentence)
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[type[CertsError], tuple[str, str]]:
        return type(self), (self.code, self.detail)


class CallerError(CertsError):
    """The caller's value breaks a rule."""

    fault = "caller"
    grpc_status = "INVALID_ARGUMENT"


class PeerError(CertsError):
    """What a peer presented does not hold."""

    fault = "peer"
    grpc_status = "UNAUTHENTICATED"


class OurError(CertsError):
    """Something of ours is missing or damaged."""


class SpiffeIdError(CallerError):
    """A text is not a SPIFFE ID (SPIFFE-ID.md section 2), in the order in which the rules are checked."""

    sentences = MappingProxyType(
        {
            "empty": "the SPIFFE ID is empty",
            "too_long": "the SPIFFE ID is longer than 2048 bytes",
            "wrong_scheme": "the SPIFFE ID does not begin with spiffe://",
            "missing_trust_domain": "the SPIFFE ID has no trust domain",
            "trust_domain_too_long": "the trust domain name is longer than 255 bytes",
            "bad_trust_domain_char": "a trust domain name holds only a-z, 0-9, dot, dash and underscore",
            "trailing_slash": "the path of the SPIFFE ID ends with a slash",
            "empty_segment": "the path of the SPIFFE ID has an empty segment",
            "dot_segment": "the path of the SPIFFE ID has a segment . or ..",
            "bad_path_char": "a path segment holds only letters, digits, dot, dash and underscore",
            "missing_leading_slash": "the path of the SPIFFE ID does not begin with a slash",
        }
    )


class PatternError(CallerError):
    """A text is not an ID pattern. Rules that patterns share with SPIFFE IDs keep the SPIFFE ID's code."""

    sentences = MappingProxyType(
        {
            **SpiffeIdError.sentences,
            "missing_path": "an ID pattern needs a path: the trust domain's own ID belongs to no segment",
            "partial_wildcard": "a wildcard stands for whole path segments: write * or **, not a part of a segment",
            "double_star_not_last": "** stands only at the end of a pattern",
            "reserved_path": "everything at and below /spire is reserved and belongs to no segment",
        }
    )


class DnsPatternError(CallerError):
    """A text is no pattern of hosts' names."""

    sentences = MappingProxyType(
        {"malformed_dns_pattern": "a pattern is a DNS name in lower case; * is one whole label, ** begins it"}
    )


class SelectorError(CallerError):
    """A text is not a selector `type:value`."""

    sentences = MappingProxyType(
        {
            "missing_colon": "a selector is written type:value",
            "missing_type": "the selector has no type",
            "missing_value": "the selector has no value",
            "colon_in_type": "the selector's type holds a colon",
            "type_too_long": "the selector's type is longer than 255 bytes",
            "value_too_long": "the selector's value is longer than 4096 bytes",
            "bad_char": "the selector holds a control character or is not Unicode text",
        }
    )


class FingerprintError(CallerError):
    """A text is not a SHA-256 fingerprint."""

    sentences = MappingProxyType({"bad_fingerprint": "a fingerprint is 64 lower-case hexadecimal digits"})


class IssueError(CallerError):
    """No certificate may be made as asked."""

    grpc_status = "FAILED_PRECONDITION"
    sentences = MappingProxyType(
        {
            "authority_expired": "the signing authority has expired",
            "bad_ttl": "the lifetime is not a positive number of seconds",
            "bad_dns_name": "a DNS name in the certificate must be lower-case labels, the first of them perhaps *",
            "too_many_sans": "a certificate holds 32 names at most",
            "spiffe_id_root_path": "a workload's SPIFFE ID needs a path",
            "foreign_trust_domain": "the authority issues for its own trust domain only",
            "unsupported_key": "the key is none of ECDSA P-256, ECDSA P-384, RSA of an allowed size and Ed25519",
            "subject_equals_issuer": "the subject would equal the issuer's, which OpenSSL takes for self-signed",
            "key_mismatch": "the authority's key does not belong to its certificate",
            "crl_sign_missing": "the authority's certificate does not let it sign revocation lists (keyUsage cRLSign)",
            "crl_too_long": "a revocation list has 2000 entries at most",
            "algorithm_mismatch": "the signing algorithm does not go with the key",
            "audience_missing": "at least one audience is required",
            "audience_too_long": "a JWT-SVID names 64 audiences at most, none of them empty, with 4096 bytes in all",
        }
    )


class BundleError(CallerError):
    """A trust bundle cannot be read. Whoever publishes it is at fault; the last good one stays."""

    sentences = MappingProxyType(
        {
            "bundle_too_large": "the trust bundle is longer than 4 MiB or has more than 1024 keys",
            "malformed_bundle": "the trust bundle is not a SPIFFE bundle",
            "malformed_certificate": "a certificate in the trust bundle cannot be read",
            "not_a_ca": "a certificate in the trust bundle is none of a CA that may sign SVIDs",
            "not_a_node_ca": "a certificate is none of a CA for nodes whose key has an allowed kind and size",
            "malformed_ssh_key": "a CA of hosts is no public key as ssh-keygen writes it: Ed25519, ECDSA or RSA",
            "unsupported_ssh_key": "an RSA key of a CA of hosts has 2048 to 8192 bits and an exponent up to 65537",
            "malformed_jwt_key": "a jwt-svid or wit-svid key in the trust bundle cannot be read",
            "unknown_authority": "the trust bundle holds no authority of that ID",
            "not_tainted": "an authority is tainted before it is revoked",
        }
    )


class EvidenceError(CallerError):
    """A message of a node's attestation cannot be read."""

    sentences = MappingProxyType(
        {
            "malformed_evidence": "the evidence is not the JSON of its attestor",
            "no_certificate": "the evidence holds no certificate",
            "too_many_certificates": "the evidence holds more than a certificate and 4 intermediates",
            "malformed_certificate": "a certificate of the evidence cannot be read or is longer than 16 KiB",
            "malformed_challenge": "the challenge is not the JSON of its attestor",
            "malformed_answer": "the answer to the challenge is not the JSON of its attestor",
            "wrong_nonce": "a nonce has 32 bytes",
            "wrong_kind": "the challenge is for another kind of key",
            "bad_host_name": (
                "the host name is no DNS name in lower case without a dot at its end, or it is an address, or localhost"
            ),
            "bad_agent_name": "an agent's name is a letter, then letters, digits and dashes, at most 32 in all",
            "bad_port": "a port is a whole number from 1 to 65535",
            "bad_cluster_name": "a cluster's name has letters, digits, dots, dashes and underscores, at most 63 in all",
            "bad_pod_token": "the token is missing or longer than 8 KiB",
        }
    )


class SvidError(PeerError):
    """An X.509-SVID does not hold: X509-SVID.md and RFC 5280, in the order in which the rules are checked."""

    sentences = MappingProxyType(
        {
            "chain_empty": "there is no certificate",
            "chain_too_long": "the chain has more than 7 certificates",
            "malformed_certificate": "a certificate cannot be read or is longer than 16 KiB",
            "uri_san_missing": "the certificate has no URI SAN",
            "uri_san_multiple": "the certificate has more than one URI SAN",
            "too_many_sans": "the certificate has more than 32 names",
            "spiffe_id_invalid": "the certificate's URI SAN is not a SPIFFE ID",
            "spiffe_id_root_path": "the certificate's SPIFFE ID has no path",
            "san_not_critical": "the certificate has no subject and its SAN extension is not critical",
            "leaf_is_ca": "the certificate is a CA certificate, which identifies nobody",
            "key_usage_missing": "the certificate has no key usage extension",
            "key_usage_not_critical": "the certificate's key usage extension is not critical",
            "digital_signature_missing": "the certificate's key may not be used for digital signatures",
            "key_cert_sign_set": "the certificate's key may sign certificates",
            "crl_sign_set": "the certificate's key may sign revocation lists",
            "eku_incomplete": "the certificate is not for both TLS servers and TLS clients",
            "unsupported_key": "the key is none of ECDSA P-256, ECDSA P-384, RSA of 2048 to 8192 bits and Ed25519",
            "unknown_trust_domain": "there is no trust bundle for the certificate's trust domain",
            "authority_id_mismatch": "a CA certificate in the chain names another trust domain or a workload",
            "name_constraints_unsupported": "a CA certificate in the chain has name constraints",
            "chain_untrusted": "the certificate does not chain to the trust bundle of its trust domain",
            "not_yet_valid": "a certificate in the chain is not yet valid",
            "expired": "a certificate in the chain has expired",
            "revoked_serial": "the certificate is revoked",
            "revoked_authority": "an authority that signed the certificate is revoked",
            "revoked_id": "certificates of this SPIFFE ID issued before a certain time are revoked",
            "intermediate_not_listed": "a CA certificate in the chain is not among those that the broker lists",
            "segment_not_listed": "a CA in the chain is not listed for the segment of this SPIFFE ID",
        }
    )


class CrlError(PeerError):
    """A revocation list does not hold: RFC 5280 section 5, in the order in which the rules are checked."""

    sentences = MappingProxyType(
        {
            "crl_too_long": "the revocation list is longer than 128 KiB",
            "malformed_crl": "the revocation list cannot be read",
            "partial_crl": "the revocation list is of some certificates only, or has an unknown critical extension",
            "crl_incomplete": "the revocation list has no number, no authority key identifier or no next update",
            "crl_untrusted": "the authority that signed the revocation list does not chain to the trust bundle",
            "crl_sign_missing": "the authority's certificate does not let it sign revocation lists",
            "crl_of_another": "the revocation list is another authority's than the one that is said to have signed it",
            "bad_crl_signature": "the revocation list's signature does not hold",
            "crl_expired": "the revocation list should have been replaced by now",
        }
    )


class JwtSvidError(PeerError):
    """A JWT-SVID does not hold: JWT-SVID.md, RFC 7515 and RFC 7519, in the order in which the rules are checked."""

    sentences = MappingProxyType(
        {
            "token_too_long": "the token is longer than 16 KiB",
            "malformed_token": "the token is not a JWS in compact serialization",
            "malformed_header": "the token's header is not a JSON object that can be read in one way",
            "header_not_allowed": "the token's header holds more than alg, kid and typ",
            "algorithm_not_allowed": "the token's alg is none of RS, ES and PS with 256, 384 or 512",
            "type_not_allowed": "the token's typ is neither JWT nor JOSE",
            "key_id_missing": "the token's header has no kid",
            "malformed_claims": "the token's claims are not a JSON object that can be read in one way",
            "subject_missing": "the token has no sub",
            "spiffe_id_invalid": "the token's sub is not a SPIFFE ID",
            "spiffe_id_root_path": "the token's SPIFFE ID has no path",
            "audience_missing": "the token has no aud",
            "expiry_missing": "the token has no exp",
            "malformed_claim": "one of the token's aud, exp, nbf, iat and jti is not what RFC 7519 says",
            "unknown_trust_domain": "there is no trust bundle with keys for the token's trust domain",
            "key_unknown": "the trust bundle of the token's trust domain has no key of that kid",
            "key_expired": "the key that the token names has expired",
            "algorithm_mismatch": "the key that the token names does not sign with the token's alg",
            "bad_signature": "the token is not signed by the key that it names",
            "not_yet_valid": "the token is not yet valid",
            "expired": "the token has expired",
            "wrong_audience": "the token is for another audience",
            "revoked_token": "the token is revoked",
            "revoked_authority": "the key that signed the token is revoked",
            "revoked_id": "tokens of this SPIFFE ID issued before a certain time are revoked",
            "segment_not_listed": "the key that signed the token is not listed for the segment of this SPIFFE ID",
        }
    )


class NodeCertificateError(PeerError):
    """A node's certificate does not prove which node it is, in the order in which the rules are checked."""

    grpc_status = "PERMISSION_DENIED"
    sentences = MappingProxyType(
        {
            "unsupported_key": (
                "a key is none of ECDSA P-256, P-384 and P-521, RSA of 2048 to 8192 bits with an exponent up to 65537, "
                "and, in a CA alone, Ed25519"
            ),
            "too_many_names": "the node's certificate has more than 256 names",
            "leaf_is_ca": "the node's certificate is a CA certificate, which stands for no node",
            "digital_signature_missing": "the node's certificate has no key usage digitalSignature",
            "key_cert_sign_set": "the node's certificate may sign certificates",
            "wrong_purpose": "the node's certificate is for neither TLS clients nor TLS servers",
            "critical_extension": "the node's certificate has a critical extension that is not known here",
            "chain_untrusted": "the node's certificate does not chain to a CA that is configured for x509pop",
            "name_constraints_unsupported": "a CA above the node's certificate has name constraints that are not known",
            "not_yet_valid": "the node's certificate, or a CA above it, is not yet valid",
            "expired": "the node's certificate, or a CA above it, has expired",
            "bad_signature": "the challenge is not signed by the key of the node's certificate",
        }
    )


class PodTokenError(PeerError):
    """A service account's token does not prove which pod shows it, in the order in which the rules are checked."""

    grpc_status = "PERMISSION_DENIED"
    sentences = MappingProxyType(
        {
            "not_of_a_pod": "the token is bound to no pod: it must come from a projected volume of the pod",
            "token_id_missing": "the token has no jti; Kubernetes gives one from version 1.30 on",
            "malformed_pod_claim": "the token's namespace, service account, pod or node is not what Kubernetes writes",
            "other_subject": "the token's sub is not the service account that its other claims name",
            "other_issuer": "the token's iss is not the issuer that is configured for its cluster",
            "key_unknown": "the cluster's keys have none of the token's kid",
            "lives_too_long": "the token lives longer than an hour, and nobody is asked whether its pod is still there",
            "not_authenticated": (
                "the cluster's API server does not vouch for the token: its pod is gone, or another cluster signed it"
            ),
            "review_differs": "the cluster's API server names another pod or service account than the token",
            "pod_gone": "the pod that the token names is not there any more",
            "pod_ended": "the pod that the token names has ended or is being deleted",
            "pod_differs": "the pod of that name is another than the token's: its UID, service account or node differs",
            "namespace_gone": "the namespace that the token names is not there any more, or is being deleted",
            "too_many_labels": "the pod or its namespace has more than 256 labels",
        }
    )


class SshCertificateError(PeerError):
    """An SSH certificate does not prove which host it is, in the order in which the rules are checked."""

    grpc_status = "PERMISSION_DENIED"
    sentences = MappingProxyType(
        {
            "unsupported_key": (
                "a key is none of Ed25519, ECDSA P-256, P-384 and P-521, and RSA of 2048 to 8192 bits with an exponent "
                "up to 65537"
            ),
            "weak_signature": "the host's certificate is signed with SHA-1 or by a kind of key that is not known here",
            "not_a_host": "the certificate is none of a host",
            "no_principal": "the host's certificate names no host, and would be good for every one",
            "too_many_principals": "the host's certificate has more than 256 principals",
            "critical_option": "the host's certificate has a critical option, and none is known for hosts",
            "bad_principal": "the first principal of the host's certificate is no name of a host",
            "wrong_domain": "the first principal of the host's certificate is not in the canonical domain",
            "ca_unknown": "the host's certificate is not of a CA that is configured for sshpop",
            "not_yet_valid": "the host's certificate is not yet valid",
            "expired": "the host's certificate has expired",
            "bad_ca_signature": "the host's certificate is not signed by its CA",
            "bad_signature": "the challenge is not signed by the key of the host's certificate",
        }
    )


class WitSvidError(PeerError):
    """A WIT-SVID does not hold: WIT-SVID.md, and what it takes over from JWT-SVIDs, in the order of the checks."""

    sentences = MappingProxyType(
        {
            **JwtSvidError.sentences,
            "header_not_allowed": "the token's header asks for something to be understood (crit)",
            "type_not_allowed": "the token's typ is not wit+jwt",
            "audience_present": "the token has an aud, which a WIT-SVID must not",
            "confirmation_missing": "the token has no cnf.jwk to prove possession of",
            "confirmation_not_allowed": "the token's cnf.jwk is no public key that names its algorithm",
        }
    )


class AuthorityError(CallerError):
    """The life cycle of authorities does not allow this."""

    grpc_status = "FAILED_PRECONDITION"
    sentences = MappingProxyType(
        {
            "unknown_authority": "no slot holds an authority of that ID",
            "illegal_event": "the authority's state does not allow this",
            "illegal_step": "the rotation's stage does not allow this",
            "no_free_slot": "the next slot cannot be used",
        }
    )


class KeyManagerError(OurError):
    """A key of ours cannot be had."""

    sentences = MappingProxyType(
        {
            "bad_key_id": "a key ID is 1 to 64 letters, digits, dashes and underscores",
            "key_not_found": "the key manager holds no such key",
            "key_damaged": "the stored key cannot be read",
            "wrong_passphrase": "the stored key is encrypted and the passphrase is missing or wrong",
            "unknown_key_type": "a key type is ec-p256, ec-p384, rsa-2048 or rsa-4096",
            "key_extractable": "the key manager made a key that can be copied out of it, which none may be",
        }
    )


class KeyManagerAway(KeyManagerError):
    """The device or service that holds our keys does not answer, or does not let us in; it may be back later."""

    grpc_status = "UNAVAILABLE"
    sentences = MappingProxyType(
        {
            "no_module": "the PKCS#11 module does not begin",
            "no_token": "the PKCS#11 module has no token of this label",
            "no_pin": "the token's PIN cannot be had",
            "wrong_pin": "the token refused the PIN; correct pin_file, it is not tried again before (or before SIGHUP)",
            "pin_locked": "the token's PIN is locked; its security officer unlocks it, then send SIGHUP",
            "last_try": "one wrong PIN more locks the token; log in with another program once, then send SIGHUP",
            "device_failed": "the key manager failed",
            "refused": "the key manager refuses; let this broker use its keys",
            "too_slow": "the key manager did not answer in time",
            "key_gone": "the key manager holds this key no more",
            "wrong_signature": "the key manager returned a signature that its own key did not make",
            "forked": "keys of a device cannot be used in a process that was forked off",
        }
    )


class JournalError(OurError):
    """An authority journal cannot be read back."""

    sentences = MappingProxyType({"malformed_journal": "the authority journal cannot be read"})
