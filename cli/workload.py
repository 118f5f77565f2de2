# SPDX-License-Identifier: Apache-2.0
"""The Workload API as its caller: the SVIDs of this process from an auth socket."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from firedoor.certs.certificate import pem_encode, split_der
from firedoor.cli.admin import CALL_SECONDS
from firedoor.cli.errors import Refused, Unreachable
from firedoor.wire import workload_grpc, workload_pb2

# Every Workload API request carries it, so that a browser can be told from a workload.
METADATA = (("workload.spiffe.io", "true"),)


def fetch(path: str, option: str = "--auth-socket") -> workload_pb2.X509SVIDResponse:
    """Return the first answer of the Workload API at `path`, which `option` named."""
    with stream(path, option, CALL_SECONDS) as answers:
        for answer in answers:
            return answer
        raise Refused("the auth socket ended the stream without an answer")


@contextmanager
def stream(path: str, option: str, seconds: float | None = None) -> Iterator[Iterator[workload_pb2.X509SVIDResponse]]:
    """Open the stream of answers, one at once and one at each change. Raise Unreachable or Refused, also while read."""
    with _api(path, option) as api:
        yield iter(api.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=METADATA, timeout=seconds))


def fetch_jwt(path: str, audience: Sequence[str], spiffe_id: str, option: str) -> Sequence[workload_pb2.JWTSVID]:
    """Return JWT-SVIDs of one identity, or of all when none is named. Raise Unreachable or Refused."""
    with _api(path, option) as api:
        request = workload_pb2.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id)
        return api.FetchJWTSVID(request, metadata=METADATA, timeout=CALL_SECONDS).svids


@contextmanager
def _api(path: str, option: str) -> Iterator[workload_grpc.SpiffeWorkloadAPIStub]:
    """Connect. Raise Unreachable or Refused, also for what a call inside raises."""
    if not Path(path).exists():
        raise Unreachable(f"there is no auth socket at {path}: start a sidecar, or name its socket with {option}")
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")]) as channel:
        try:
            yield workload_grpc.SpiffeWorkloadAPIStub(channel)
        except grpc.RpcError as error:
            _raise(path, error)


def _raise(path: str, error: grpc.RpcError) -> NoReturn:
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise Unreachable(f"the sidecar at {path} does not answer ({error.details()})") from None
    raise Refused(f"{error.details()} ({error.code().name})") from None


def key_pem(svid: workload_pb2.X509SVID) -> bytes:
    """Return the private key as PKCS#8 PEM."""
    key = load_der_private_key(svid.x509_svid_key, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificates_pem(data: bytes) -> bytes:
    """Return concatenated DER certificates as PEM."""
    return pem_encode(split_der(data)).encode()
