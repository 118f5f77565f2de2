# SPDX-License-Identifier: Apache-2.0
"""What a rotation is asked to be, what it goes by, and what is told of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from firedoor.broker.followers import Missing
from firedoor.certs import Rotation

if TYPE_CHECKING:
    from firedoor.broker.config import Config
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State
    from firedoor.certs.authority import Kind

# How long an emergency waits for those who are there, seconds, unless it is told.
EMERGENCY_PATIENCE: Final = 3
EMERGENCY_DRAIN: Final = 1
DEFAULT_PATIENCE: Final = 30
DEFAULT_DRAIN: Final = 10
# How long a kubelet may take to bring a changed bundle into a pod: it looks once a minute, with some jitter.
KUBELET_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody asks for. `patience` and `drain` are seconds; without patience, that of its kind."""

    by: str
    force: bool = False
    patience: int | None = None
    drain: int = DEFAULT_DRAIN
    emergency: bool = False

    def of(self, rotation: Rotation) -> Rotation:
        """Return the rotation as this order wants it; nothing that was ordered before is taken back."""
        if self.emergency:
            patience = self.patience or EMERGENCY_PATIENCE
            return replace(rotation, emergency=True, force=True, patience=patience, drain=EMERGENCY_DRAIN, others=0)
        if self.force and not rotation.emergency:
            return replace(rotation, force=True, patience=self.patience or DEFAULT_PATIENCE)
        return rotation


@dataclass(frozen=True, slots=True)
class Settings:
    """What a broker is told about rotations. Times are seconds."""

    # How old an authority of a kind gets; kinds that are not here are replaced by their own clock.
    schedule: Mapping[Kind, int]
    # How long those may take to fetch our bundle who tell nobody: other trust domains, and kubelets for pods that have
    # no sidecar. 0 where it is not served to them.
    others: int
    # The longest life of a token of a kind that is signed for a workload, and whether tokens are minted too.
    longest: Callable[[Kind], int]
    mints: Callable[[], bool]
    # Whether authorities of a kind can be tainted and revoked here.
    retires: Callable[[Kind], bool]
    # Have the broker's own SVID signed by the authority that signs now.
    refresh: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Report:
    """Where a rotation stands: who is missing out of how many, and why it cannot go on."""

    rotation: Rotation
    missing: tuple[Missing, ...] = ()
    of: int = 0
    trouble: str = ""


def settings_of(config: Config, state: State, policy: PolicyKeeper, refresh: Callable[[], Awaitable[None]]) -> Settings:
    """Return what the rotations of a broker go by."""

    def longest(kind: Kind) -> int:
        if kind == "jwt":
            return max([config.jwt_svid_ttl, *(entry.jwt_svid_ttl for entry in state.entries)])
        # A WIT-SVID lives as long as an X.509-SVID of its entry.
        return max([config.x509_svid_ttl, *(entry.x509_svid_ttl for entry in state.entries)])

    def mints() -> bool:
        return any(segment.admission.mint for one in policy.asked if one is not None for segment in one.segments)

    def retires(kind: Kind) -> bool:
        # Below an authority upstream our bundle has that one's root, and a server upstream keeps what we published.
        return config.upstream is None or (kind != "x509" and state.knows_all_below)

    controllers = config.kubernetes.controllers
    kubelets = KUBELET_SECONDS if controllers is not None and controllers.certificate_ttl else 0
    return Settings(
        schedule=config.rotation,
        others=max(config.bundle_endpoint.refresh_hint if config.bundle_endpoint is not None else 0, kubelets),
        longest=longest,
        mints=mints,
        retires=retires,
        refresh=refresh,
    )
