# SPDX-License-Identifier: Apache-2.0
"""AWS KMS for tests: moto's server, in a process of its own.

moto signs what it is given as a message, also when it is told that it is a digest; the process repairs that and changes
nothing else.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from firedoor.broker.keys.settings import AwsKmsRules

SECRET = "kms-secret-that-nobody-may-see"


@dataclass(frozen=True)
class Kms:
    """A server, and how a broker is told of it."""

    url: str
    process: subprocess.Popen[str]

    @property
    def rules(self) -> AwsKmsRules:
        return AwsKmsRules("eu-central-1", "firedoor", self.url)

    @property
    def flags(self) -> dict[str, str]:
        return {"key_manager_aws_kms_region": "eu-central-1", "key_manager_aws_kms_endpoint_url": self.url}


def waits(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have each try of those that connect from now on take so long: a test's server may be held up."""
    from botocore.config import Config

    from firedoor.broker.keys import aws_kms

    config = aws_kms._CONFIG.merge(Config(connect_timeout=seconds, read_timeout=seconds))
    patch.setattr(aws_kms, "_CONFIG", config)


@contextlib.contextmanager
def kms() -> Iterator[Kms]:
    """Run a server, with credentials for it in the environment, and patience with it."""
    words = [sys.executable, "-u", str(Path(__file__).resolve())]
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process,
    ):
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        waits(patch, 60)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        try:
            yield Kms(_address(process), process)
        finally:
            process.terminate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            # What it says later must not fill the pipe, at which it would stand still.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return found[0]
    raise AssertionError("moto's server did not start")


def _serve() -> None:
    """Run moto's server with digests that are signed as digests."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
    from moto.kms import models, responses
    from moto.server import main

    told: dict[str, str] = {}
    handle, sign = responses.KmsResponse.sign, models.KmsBackend.sign

    def handled(self: responses.KmsResponse) -> str:
        told["type"] = str(self._get_param("MessageType"))
        return str(handle(self))

    def signed(self: models.KmsBackend, key_id: str, message: bytes, signing_algorithm: str) -> tuple[str, bytes, str]:
        arn, signature, name = sign(self, key_id, message, signing_algorithm)
        if told["type"] == "DIGEST":
            key = self.describe_key(key_id).private_key.private_key
            algorithm = Prehashed(hashes.SHA384() if name.endswith("384") else hashes.SHA256())
            if isinstance(key, ec.EllipticCurvePrivateKey):
                signature = key.sign(message, ec.ECDSA(algorithm))
            else:
                signature = key.sign(message, padding.PKCS1v15(), algorithm)
        return arn, signature, name

    responses.KmsResponse.sign, models.KmsBackend.sign = handled, signed  # type: ignore[method-assign]
    main(["-H", "127.0.0.1", "-p", "0"])


if __name__ == "__main__":
    _serve()
