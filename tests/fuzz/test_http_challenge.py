# SPDX-License-Identifier: Apache-2.0
"""Whatever a node says of itself, and whatever its host answers: it is taken or refused with a sentence."""

import contextlib
import ipaddress
import json
import os
import socket
import string

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firedoor.broker import reach
from firedoor.broker.errors import EndpointError
from firedoor.certs import CertsError, DnsPattern, HttpChallenge, HttpNode, TrustDomain, is_host_name

# About this many examples a second; without a time to fill, a quick look.
EXAMPLES = max(100, int(os.environ.get("FIREDOOR_FUZZ_SECONDS", "0")) * 300)
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

TD = TrustDomain.parse("example.org")
values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=2)
names = st.text(string.ascii_lowercase + string.digits + ".-x0/%@:[]#?\\ \n", max_size=40)


def read(payload: bytes) -> None:
    try:
        node = HttpNode.read(payload)
    except CertsError:
        return
    assert HttpNode.read(node.message()) == node
    # The ID is this name and nothing else, and the path has no other segment.
    assert TD.with_path(f"/spire/agent/http_challenge/{node.hostname}").path.count("/") == 4
    assert node.path.count("/") == 6
    assert node.path.isascii()
    assert 0 < node.port < 65536


@fuzz
@given(st.fixed_dictionaries({"hostname": names | values, "agentname": names | values, "port": values}))
def test_evidence(fields: dict[str, object]) -> None:
    read(json.dumps(fields).encode())


@fuzz
@given(st.binary(max_size=300))
def test_bytes(payload: bytes) -> None:
    read(payload)
    for parse in (HttpChallenge.read, lambda data: DnsPattern.parse(data.decode("latin-1"))):
        with contextlib.suppress(CertsError):
            parse(payload)


@fuzz
@given(names)
def test_a_name_is_never_an_address(name: str) -> None:
    """Of what counts as a name nothing is taken for an address by the system's resolver, in any of its forms."""
    if not is_host_name(name):
        return
    try:
        ipaddress.ip_address(name)
        raise AssertionError(name)
    except ValueError:
        pass
    try:
        socket.inet_aton(name)
        raise AssertionError(name)
    except OSError:
        pass


@fuzz
@given(
    st.binary(max_size=300) | st.binary(max_size=200).map(lambda rest: b"HTTP/1.1 200 OK\r\nContent-Length: " + rest)
)
def test_heads_of_answers(head: bytes) -> None:
    try:
        length = reach._length(head, 64)
    except EndpointError:
        return
    assert length is None or 0 <= length <= 64
