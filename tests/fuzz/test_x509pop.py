# SPDX-License-Identifier: Apache-2.0
"""Whatever a node shows, or answers: it is taken or refused with a sentence, nothing else is raised, and soon."""

import json
import os
import time

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firedoor.certs import (
    CertsError,
    Challenge,
    TrustDomain,
    read_evidence,
    read_roots,
    verify_node_certificate,
    write_evidence,
)
from tests.fuzz.bytes_changed import altered, places
from tests.node_pki import NOW, NodePki

# About this many examples a second; without a time to fill, a quick look.
EXAMPLES = max(100, int(os.environ.get("FIREDOOR_FUZZ_SECONDS", "0")) * 150)
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

TD = TrustDomain.parse("example.org")
PKI = NodePki()
ROOTS = read_roots(PKI.root_pem)
URIS = ["x509pop://example.org/rack/a7", "x509pop://example.org/role/gpu"]
HELD = PKI.node("gpu-1", issuer=PKI.ca("Between", issuer=PKI.root), uris=URIS, dns=["gpu-1.example"])
KEY = ec.generate_private_key(ec.SECP256R1())
ANSWER = Challenge.to(KEY.public_key(), bytes(32)).answer(KEY, bytes(32))
SECONDS = 2.0


def show(payload: bytes) -> None:
    """Take a payload as the broker does, and read all that it would."""
    started = time.process_time()
    try:
        node = verify_node_certificate(read_evidence(payload), ROOTS, NOW)
    except CertsError:
        pass
    else:
        assert node.selectors(TD)
        assert Challenge.read(Challenge.to(node.key, bytes(32)).message())
    assert time.process_time() - started < SECONDS


@fuzz
@given(st.integers(0, 1), places)
def test_certificates_with_other_bytes(number: int, changes: list[tuple[int, int]]) -> None:
    chain = list(HELD.chain)
    chain[number] = altered(chain[number], changes)
    show(write_evidence(chain))


@fuzz
@given(st.lists(st.binary(max_size=600) | st.sampled_from(HELD.chain), max_size=6))
def test_other_chains(chain: list[bytes]) -> None:
    show(write_evidence(chain))


@fuzz
@given(places)
def test_payloads_with_other_bytes(changes: list[tuple[int, int]]) -> None:
    show(altered(write_evidence(HELD.chain), changes))


@fuzz
@given(places)
def test_answers_with_other_bytes(changes: list[tuple[int, int]]) -> None:
    answer = altered(ANSWER, changes)
    same = answer == ANSWER or _fields(answer) == _fields(ANSWER)
    try:
        Challenge.to(KEY.public_key(), bytes(32)).check(answer, KEY.public_key())
    except CertsError:
        assert not same
    else:
        assert same


def _fields(answer: bytes) -> object:
    """Return what counts in an answer: JSON has several spellings."""
    try:
        return json.loads(answer)["ecdsa_signature"]
    except (ValueError, KeyError, TypeError):
        return None
