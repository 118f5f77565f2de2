# SPDX-License-Identifier: Apache-2.0
"""What needs no sidecar: addresses, answers that lie, errors, and what importing it costs."""

import subprocess
import sys

import grpc
import pytest

import firedoor
from firedoor import answers, endpoint, errors, freshness
from firedoor.peers import Allowed, bearer
from firedoor.wire import workload_pb2
from tests.simulator import SimulatedTrustDomain

GOOD = {
    "unix:///run/auth.sock": "unix:/run/auth.sock",
    "unix:/run/auth.sock": "unix:/run/auth.sock",
    "tcp://127.0.0.1:8000": "ipv4:127.0.0.1:8000",
    "tcp://[::1]:8000": "ipv6:[::1]:8000",
}
BAD = [
    "/run/auth.sock",
    "unix://host/run/auth.sock",
    "unix:run/auth.sock",
    "unix://",
    "unix:///a?b",
    "unix:///a#b",
    "unix:///a?",
    "tcp://localhost:8000",
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:0",
    "tcp://127.0.0.1:99999",
    "tcp://127.0.0.1:8000/",
    "tcp://user@127.0.0.1:8000",
    "tcp://[::1",
    "http://127.0.0.1:80",
    "",
]


@pytest.mark.parametrize("address", GOOD)
def test_a_socket(address: str) -> None:
    assert endpoint.target(address, {}) == GOOD[address]
    assert endpoint.target(None, {"SPIFFE_ENDPOINT_SOCKET": address}) == GOOD[address]
    assert endpoint.target(address, {"SPIFFE_ENDPOINT_SOCKET": "unix:///other"}) == GOOD[address]


@pytest.mark.parametrize("address", BAD)
def test_no_socket(address: str) -> None:
    with pytest.raises(errors.SocketUnknown):
        endpoint.target(address, {})


def x509_answer(**changes: object) -> workload_pb2.X509SVIDResponse:
    trust = SimulatedTrustDomain("example.org")
    made, other = trust.svid("/segment/a/x"), trust.svid("/segment/a/y")
    given = {
        "spiffe_id": str(made.id),
        "x509_svid": b"".join(made.chain),
        "x509_svid_key": made.key_der,
        "bundle": trust.bundle.to_der(),
    }
    given |= {key: other.key_der if value == "other" else value for key, value in changes.items()}
    return workload_pb2.X509SVIDResponse(svids=[workload_pb2.X509SVID(**given)])  # type: ignore[arg-type]


LIES = {
    "another ID": {"spiffe_id": "spiffe://example.org/segment/a/y"},
    "no chain": {"x509_svid": b""},
    "no certificate": {"x509_svid": b"\x30\x01\x00"},
    "no key": {"x509_svid_key": b"x"},
    "another key": {"x509_svid_key": "other"},
    "no bundle": {"bundle": b"x"},
}


@pytest.mark.parametrize("changes", LIES.values(), ids=LIES)
def test_an_answer_that_cannot_be(changes: dict[str, object]) -> None:
    assert answers.x509_context(x509_answer()).svids
    with pytest.raises(errors.AnswerUnusable):
        answers.x509_context(x509_answer(**changes))


def test_an_answer_without_anything() -> None:
    with pytest.raises(errors.AnswerUnusable):
        answers.x509_context(workload_pb2.X509SVIDResponse())


def test_back_off_grows_and_begins_anew() -> None:
    backoff = freshness.Backoff(lambda low, high: 1.0)
    waits = [backoff.failed() for _ in range(20)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.2, 10.0)
    backoff.reset()
    assert backoff.failed() == 0.2


@pytest.mark.parametrize("patterns", [[], "spiffe://td/a", ["{td}/a"], ["td/a"], [""], ["spiffe://td/spire/agent/x"]])
def test_who_may_call_must_be_said(patterns: list[str]) -> None:
    Allowed(["spiffe://td/a/**"])
    with pytest.raises(errors.BadArgument):
        Allowed(patterns)


TOKENS = {
    "none": (),
    "another scheme": (("authorization", "Basic x"),),
    "two": (("authorization", "Bearer x"), ("authorization", "Bearer y")),
    "bytes": (("authorization", b"Bearer x"),),
}


@pytest.mark.parametrize("metadata", TOKENS.values(), ids=TOKENS)
def test_exactly_one_token(metadata: tuple[tuple[str, str | bytes], ...]) -> None:
    assert bearer([("authorization", "Bearer x")]) == "x"
    with pytest.raises(errors.PeerUnknown):
        bearer(metadata)


def leaves(one: type[errors.FiredoorError]) -> list[type[errors.FiredoorError]]:
    below = one.__subclasses__()
    return [leaf for each in below for leaf in leaves(each)] if below else [one]


def test_every_error_has_a_code_a_hint_and_a_place_in_the_tree() -> None:
    found = leaves(errors.FiredoorError)
    assert len({one.code for one in found}) == len(found)
    for one in found:
        assert one.hint
        assert one.__name__ in (errors.__doc__ or "")
        assert isinstance(one.status, grpc.StatusCode)


def test_every_public_name_is_there() -> None:
    for name in firedoor.__all__:
        assert getattr(firedoor, name) is not None
    with pytest.raises(AttributeError):
        _ = firedoor.nothing


FORBIDDEN = """
import sys
ALLOWED = set(sys.stdlib_module_names) | {"firedoor", "grpc", "google", "cryptography", "cffi", "_cffi_backend",
    "typing_extensions"}
OURS = {"firedoor.mtls", "firedoor.broker", "firedoor.sidecar", "firedoor.segments", "firedoor.cli"}
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name in OURS or name.split(".")[0] not in ALLOWED:
            raise ImportError("forbidden: " + name)
sys.meta_path.insert(0, Guard())
import firedoor
for name in firedoor.__all__:
    getattr(firedoor, name)
firedoor.Client("unix:///none.sock", timeout=0.1).close()
"""


def test_nothing_but_the_bare_dependencies_is_imported() -> None:
    ran = subprocess.run([sys.executable, "-c", FORBIDDEN], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    twin = subprocess.run(
        [sys.executable, "-c", FORBIDDEN + "import firedoor.mtls"], capture_output=True, text=True, timeout=60
    )
    assert "forbidden: firedoor.mtls" in twin.stderr


def test_importing_it_alone_loads_nothing() -> None:
    code = "import firedoor, sys; print([n for n in ('grpc', 'cryptography', 'google.protobuf') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
