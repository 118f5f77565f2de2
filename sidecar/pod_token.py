# SPDX-License-Identifier: Apache-2.0
"""A projected service-account token, for k8s_pod (this pod is the agent) and k8s_psat (its node is, SPIRE's way).

A volume of the pod brings it, and the kubelet renews the file; it is read anew at each attestation. What can be seen
from here (no token of a pod, expired) is said before the server is asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final

from firedoor.certs import K8S_POD, K8S_PSAT, CertsError, PodClaims, PodEvidence, PodToken
from firedoor.sidecar.errors import PodTokenUnusable
from firedoor.sidecar.evidence import Shown

# Where the injector has the token put, and where SPIRE's examples do.
TOKENS: Final[Mapping[str, Path]] = MappingProxyType(
    {
        K8S_POD: Path("/var/run/secrets/firedoor.dev/token"),
        K8S_PSAT: Path("/var/run/secrets/tokens/spire-agent"),
    }
)
_MAX_FILE: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class ClusterToken:
    """Where the token is, and what the server calls our cluster."""

    cluster: str
    token: Path
    kind: ClassVar[str]
    again: ClassVar[bool]

    @property
    def advice(self) -> str:
        """Say what to look at."""
        return (
            f"the token in {self.token} ({self.kind}.token) must be projected for the audience of the server's "
            f"{self.kind}, and cluster {self.cluster} be configured there"
        )

    def show(self, now: float) -> Shown:
        """Read the token. Raise PodTokenUnusable."""
        text, claims = self._read()
        if claims.expires_at <= now:
            raise self._unusable("has expired: the kubelet renews it no more")
        return Shown(PodEvidence(self.cluster, text).message())

    def claims(self) -> PodClaims:
        """Return which pod the token names. Raise PodTokenUnusable."""
        return self._read()[1]

    def _read(self) -> tuple[str, PodClaims]:
        try:
            with self.token.open("rb") as file:
                text = file.read(_MAX_FILE).strip().decode("ascii")
        except OSError as error:
            raise self._unusable(f"cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise self._unusable("holds no token") from None
        try:
            return text, PodToken.read(text).claims
        except CertsError as error:
            raise self._unusable(f"cannot attest: {error}") from None

    def _unusable(self, what: str) -> PodTokenUnusable:
        return PodTokenUnusable(f"{self.token} {what} ({self.kind}.token)")


class PodProof(ClusterToken):
    """The pod is the agent. One token attests once, so that the agent's key has to outlive a restart."""

    __slots__ = ()
    kind = K8S_POD
    again = False


class PsatProof(ClusterToken):
    """The node of this pod is the agent; one token attests again and again."""

    __slots__ = ()
    kind = K8S_PSAT
    again = True


PROOFS: Final[Mapping[str, type[ClusterToken]]] = MappingProxyType({one.kind: one for one in (PodProof, PsatProof)})
