# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in `firedoor.certs`, split by whose fault it is.

    CertsError
    ├── CallerError              the value that was handed in breaks a rule
    │   ├── SpiffeIdError        a SPIFFE ID or trust domain name
    │   ├── PatternError         an ID pattern
    │   ├── SelectorError        a selector
    │   ├── FingerprintError     a fingerprint
    │   ├── CsrError             a certificate signing request
    │   ├── IssueError           a request that no certificate may be made for
    │   ├── BundleError          a trust bundle
    │   └── AuthorityError       an event that the authority's state does not allow
    ├── PeerError
    │   └── SvidError            an X.509-SVID or its chain, as a peer presents it
    └── OurError
        ├── KeyManagerError      a key that is missing, damaged or locked
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
