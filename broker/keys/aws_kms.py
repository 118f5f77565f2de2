# SPDX-License-Identifier: Apache-2.0
"""Keys in AWS KMS.

A key of ours is known by its alias, `alias/<prefix>/<broker ID>/<key ID>`; a new key takes the alias over in one call,
and the one before it is scheduled for deletion, as soon as KMS allows (seven days). What is signed goes there as a
digest: AWS learns nobody's ID and sees no token.

Credentials are found as by every AWS program (environment, web identity of a service account, instance profile); they
are in no message and no log: of what KMS says, only the code and the name of the call are kept.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from firedoor.broker.keys.device import device_key
from firedoor.broker.keys.pool import THREADS
from firedoor.certs import KeyManagerAway, KeyManagerError, KeyType, PrivateKey
from firedoor.certs.keys import check_key_id

if TYPE_CHECKING:
    from firedoor.broker.keys.settings import AwsKmsRules

_SPECS: Final[Mapping[KeyType, str]] = {
    KeyType.EC_P256: "ECC_NIST_P256",
    KeyType.EC_P384: "ECC_NIST_P384",
    KeyType.RSA_2048: "RSA_2048",
    KeyType.RSA_4096: "RSA_4096",
}
# The least that KMS allows. Nothing is signed with such a key, and each costs money until it is gone.
_PENDING_DAYS: Final = 7
# A call takes milliseconds. Three tries of these are within what a signature may take.
_CONFIG: Final = Config(
    connect_timeout=2,
    read_timeout=2,
    retries={"mode": "standard", "total_max_attempts": 3},
    max_pool_connections=THREADS,
)
# What the caller may not do, or what a key's state does not allow: somebody has to change that.
_REFUSALS: Final = frozenset(
    {
        "AccessDeniedException",
        "DisabledException",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "KMSInvalidStateException",
        "LimitExceededException",
        "UnrecognizedClientException",
    }
)


class AwsKmsKeyManager:
    """See the module. `owner` is the broker's ID. Calls may come from several threads."""

    def __init__(self, rules: AwsKmsRules, owner: str) -> None:
        self._rules = rules
        # An alias holds no dot.
        self._owner = hashlib.sha256(owner.encode()).hexdigest()[:16] if "." in owner else owner
        self._lock = threading.Lock()
        # Held while keys are made and given up: what nobody waits for any more must not meet what comes after it.
        self._writing = threading.Lock()
        self._client: Any = None

    def generate(self, key_id: str, key_type: KeyType) -> PrivateKey:
        """Make a key, and give up what had this ID. Raise KeyManagerAway."""
        alias = self._alias(key_id)
        with self._writing:
            before = self._described(alias)
            tags = [{"TagKey": "firedoor", "TagValue": self._owner}]
            made = self._call(
                "create_key",
                KeySpec=_SPECS[key_type],
                KeyUsage="SIGN_VERIFY",
                Description=f"firedoor broker {self._owner}: {key_id}",
                Tags=tags,
            )["KeyMetadata"]["KeyId"]
            self._call("create_alias" if before is None else "update_alias", AliasName=alias, TargetKeyId=made)
            if before is not None:
                self._give_up(before)
            return self._key(key_id, made)

    def get(self, key_id: str) -> PrivateKey:
        """Return the key. Raise KeyManagerAway or KeyManagerError."""
        found = self._described(self._alias(key_id))
        if found is None:
            raise KeyManagerError("key_not_found", key_id)
        if found["KeyState"] != "Enabled":
            raise KeyManagerAway("refused", f"{key_id} is {found['KeyState']}; enable it, or cancel its deletion")
        return self._key(key_id, found["KeyId"])

    def delete(self, key_id: str) -> None:
        """Give the key up if there is one. Raise KeyManagerAway."""
        alias = self._alias(key_id)
        with self._writing:
            found = self._described(alias)
            if found is not None:
                # The other way round, a crash in between would leave an alias that nobody can sign with.
                self._call("delete_alias", AliasName=alias)
                self._give_up(found)

    def connect(self) -> None:
        """Look whether KMS answers, and knows us. Raise KeyManagerAway."""
        self._described(self._alias("x509-CA-A"))

    def forgive(self) -> None:
        """Look for credentials anew."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _key(self, key_id: str, kms_id: str) -> PrivateKey:
        try:
            public = load_der_public_key(self._call("get_public_key", KeyId=kms_id)["PublicKey"])
        except ValueError:
            raise KeyManagerError("key_damaged", key_id) from None
        kind = "ECDSA" if isinstance(public, ec.EllipticCurvePublicKey) else "RSASSA_PKCS1_V1_5"
        return device_key(public, partial(self._sign, key_id, kms_id, kind), key_id)

    def _sign(self, key_id: str, kms_id: str, kind: str, digest: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
        name = f"{kind}_SHA_{algorithm.digest_size * 8}"
        try:
            answer = self._called("sign", KeyId=kms_id, Message=digest, MessageType="DIGEST", SigningAlgorithm=name)
        except ClientError as error:
            if _code(error) == "NotFoundException":
                raise KeyManagerAway("key_gone", key_id) from None
            raise _away("sign", error) from None
        return bytes(answer["Signature"])

    def _give_up(self, found: Mapping[str, Any]) -> None:
        if found["KeyState"] != "PendingDeletion":
            self._call("schedule_key_deletion", KeyId=found["KeyId"], PendingWindowInDays=_PENDING_DAYS)

    def _described(self, alias: str) -> Mapping[str, Any] | None:
        """Return what KMS knows of the key behind an alias, None when there is none. Raise KeyManagerAway."""
        try:
            found: Mapping[str, Any] = self._called("describe_key", KeyId=alias)["KeyMetadata"]
        except ClientError as error:
            if _code(error) == "NotFoundException":
                return None
            raise _away("describe_key", error) from None
        return found

    def _alias(self, key_id: str) -> str:
        return f"alias/{self._rules.key_prefix}/{self._owner}/{check_key_id(key_id)}"

    def _call(self, name: str, **arguments: Any) -> Mapping[str, Any]:
        """Call KMS. Raise KeyManagerAway."""
        try:
            return self._called(name, **arguments)
        except ClientError as error:
            raise _away(name, error) from None

    def _called(self, name: str, **arguments: Any) -> Mapping[str, Any]:
        """Call KMS. Raise KeyManagerAway, or ClientError for what KMS answers."""
        try:
            answer: Mapping[str, Any] = getattr(self._connected(), name)(**arguments)
        except NoCredentialsError:
            raise KeyManagerAway("refused", "no AWS credentials were found") from None
        except BotoCoreError as error:
            raise KeyManagerAway("device_failed", f"{name}: {type(error).__name__}") from None
        return answer

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                # Made once: it reads a megabyte of descriptions. Its calls may come from several threads.
                session = boto3.session.Session()
                self._client = session.client(
                    "kms",
                    region_name=self._rules.region,
                    endpoint_url=self._rules.endpoint_url,
                    config=_CONFIG,
                )
            return self._client


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))[:64]


def _away(name: str, error: ClientError) -> KeyManagerAway:
    """Say what KMS answered: its code alone, as its sentences name accounts and roles."""
    code = _code(error)
    return KeyManagerAway("refused" if code in _REFUSALS else "device_failed", f"{name}: {code}")
