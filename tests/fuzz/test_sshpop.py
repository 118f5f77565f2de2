# SPDX-License-Identifier: Apache-2.0
"""Whatever a host shows of SSH, or answers: it is taken or refused with a sentence, and nothing else is raised."""

import json
import os
import time

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firedoor.certs import (
    CertsError,
    SshChallenge,
    read_ssh_authorities,
    read_ssh_evidence,
    verify_ssh_certificate,
    write_ssh_evidence,
)
from tests.fuzz.bytes_changed import altered, places
from tests.node_pki import NOW
from tests.ssh_ca import SshCa, rsa_blob

# About this many examples a second; without a time to fill, a quick look.
EXAMPLES = max(100, int(os.environ.get("FIREDOOR_FUZZ_SECONDS", "0")) * 150)
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

CA = SshCa(key=ec.generate_private_key(ec.SECP256R1()))
CAS = read_ssh_authorities(CA.line)
KEY = ec.generate_private_key(ec.SECP384R1())
HOSTS = (CA.host("a", "b"), CA.host("a", key=KEY), CA.host("a", public=rsa_blob(2048)))
ANSWER = SshChallenge.of(bytes(32)).answer(KEY, bytes(32))
SECONDS = 2.0


def show(payload: bytes) -> bool:
    """Take a payload as the broker does; say whether it is good."""
    started = time.process_time()
    try:
        verify_ssh_certificate(read_ssh_evidence(payload), CAS, NOW)
    except CertsError:
        return False
    finally:
        assert time.process_time() - started < SECONDS
    return True


@fuzz
@given(st.sampled_from(HOSTS), places)
def test_certificates_with_other_bytes(host: object, changes: list[tuple[int, int]]) -> None:
    certificate: bytes = host.certificate  # type: ignore[attr-defined]
    # Every byte is signed, or is the signature.
    assert show(write_ssh_evidence(altered(certificate, changes))) == (altered(certificate, changes) == certificate)


@fuzz
@given(st.binary(max_size=600))
def test_other_certificates(data: bytes) -> None:
    assert not show(write_ssh_evidence(data))
    assert not show(data)


@fuzz
@given(st.binary(max_size=200), st.integers(0, 600))
def test_bytes_within_a_certificate(data: bytes, place: int) -> None:
    certificate = HOSTS[0].certificate
    show(write_ssh_evidence(certificate[:place] + data + certificate[place:]))


@fuzz
@given(places)
def test_payloads_with_other_bytes(changes: list[tuple[int, int]]) -> None:
    show(altered(write_ssh_evidence(HOSTS[0].certificate), changes))


@fuzz
@given(places)
def test_answers_with_other_bytes(changes: list[tuple[int, int]]) -> None:
    answer = altered(ANSWER, changes)
    same = answer == ANSWER or _fields(answer) == _fields(ANSWER)
    try:
        SshChallenge.of(bytes(32)).check(answer, KEY.public_key())
    except CertsError:
        assert not same
    else:
        assert same


def _fields(answer: bytes) -> object:
    """Return what counts in an answer: JSON has several spellings, and what is falsy for `Rest` is nothing."""
    try:
        found = json.loads(answer)
        signature = found["Signature"]
        return found["Nonce"], signature["Format"], signature["Blob"], bool(signature.get("Rest"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
