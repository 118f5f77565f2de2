# SPDX-License-Identifier: Apache-2.0
"""Signing JWT-SVIDs and WIT-SVIDs, and the proof without which nothing is signed.

What an X.509-SVID needs, a token needs too: `authorize_token` asks the very function that gives leave to sign a
certificate. Signing follows at once, with nothing in between that could let go of the event loop, so that there is
nothing to ask for again; unless a device has the key, which takes its time: then leave is asked for once more.

Tokens are not in the table of what was issued. That table says which certificates live, so that they can be revoked and
replaced; a token can be neither: it is checked by whoever it is shown to, against the bundle alone, and lives for
minutes. The audit log has its `jti` and its `kid`, never the token.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, final

from firedoor.broker.errors import InvalidRequest, NotAdmitted
from firedoor.broker.issuing import AuthorizedIssuance, authorize_mint, authorize_workload
from firedoor.broker.keys.device import DeviceKey
from firedoor.certs import IssueError, JwtIssuer, JwtSvid, SpiffeId, WitSvid, check_audience, mint_jwt, mint_wit

if TYPE_CHECKING:
    from firedoor.broker.authority_kinds import JwtAuthorityManager, WitAuthorityManager
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State

T = TypeVar("T")
_TOKEN_ID_BYTES: Final = 16


@final
@dataclass(frozen=True, slots=True, init=False)
class AuthorizedToken:
    """Leave to sign one token. Made by the `authorize_...` functions alone."""

    spiffe_id: SpiffeId
    ttl: int
    # Empty for what is minted without a workload.
    entry_id: str

    def __init__(self) -> None:
        raise TypeError("AuthorizedToken is made by the functions that check")


# One of the `authorize_...` functions, with what it is asked about.
Authorize: TypeAlias = Callable[[], AuthorizedToken]


def authorize_token(
    state: State, policy: PolicyKeeper, agent_id: SpiffeId, entry_id: str, default_ttl: int
) -> AuthorizedToken:
    """Check what is checked for an X.509-SVID of that entry. Raise what `authorize_workload` raises."""
    proof = authorize_workload(state, policy, agent_id, entry_id, default_ttl)
    return _token(proof, state.entitled_entry(agent_id, entry_id).jwt_svid_ttl or default_ttl)


def authorize_wit(
    state: State, policy: PolicyKeeper, agent_id: SpiffeId, entry_id: str, default_ttl: int
) -> AuthorizedToken:
    """Check what is checked for an X.509-SVID of that entry, whose life a WIT-SVID has too (SPIRE's rule)."""
    proof = authorize_workload(state, policy, agent_id, entry_id, default_ttl)
    return _token(proof, proof.ttl)


def authorize_minted_token(state: State, policy: PolicyKeeper, spiffe_id: SpiffeId, ttl: int) -> AuthorizedToken:
    """Check what is checked for an X.509-SVID that is minted. Raise what `authorize_mint` raises."""
    return _token(authorize_mint(state, policy, spiffe_id, ttl), ttl)


def _token(proof: AuthorizedIssuance, ttl: int) -> AuthorizedToken:
    made = object.__new__(AuthorizedToken)
    for name, value in {"spiffe_id": proof.spiffe_id, "ttl": ttl, "entry_id": proof.entry_id}.items():
        object.__setattr__(made, name, value)
    return made


def read_audience(audience: Sequence[str]) -> tuple[str, ...]:
    """Return the audience that a token is to have. Raise InvalidRequest."""
    try:
        return check_audience(audience)
    except IssueError as error:
        raise InvalidRequest(str(error)) from None


class TokenSigner:
    """Signs tokens with the active JWT authority."""

    def __init__(self, state: State, authority: JwtAuthorityManager, metrics: Metrics, iss: str = "") -> None:
        self._state, self._authority, self._metrics, self._iss = state, authority, metrics, iss

    async def sign(self, authorize: Authorize, audience: Sequence[str]) -> JwtSvid:
        """Sign one token. The caller has it audited before it leaves.

        Raise AuthorityError, DatabaseError or InvalidRequest, and what `authorize` raises.
        """
        proof = authorize()
        at, token_id = self._state.clock.now_for_issuing(), secrets.token_hex(_TOKEN_ID_BYTES)
        issuer = self._authority.issuer()
        job = partial(
            mint_jwt, proof.spiffe_id, audience, issuer, at=at, token_id=token_id, ttl=proof.ttl, iss=self._iss
        )
        try:
            made = await _signed(self._state, self._authority, issuer, at, authorize, proof, job)
        except IssueError as error:
            raise InvalidRequest(str(error)) from None
        self._metrics.issued.labels("token" if proof.entry_id else "minted_token").inc()
        return made


class WitSigner:
    """Signs WIT-SVIDs with the active WIT authority."""

    def __init__(self, state: State, authority: WitAuthorityManager, metrics: Metrics) -> None:
        self._state, self._authority, self._metrics = state, authority, metrics

    @property
    def by_device(self) -> bool:
        """Whether a device signs, and several signatures may go on at once."""
        return self._authority.keys.is_device

    async def sign(self, authorize: Authorize, public_key: bytes, algorithm: str) -> WitSvid:
        """Sign one token for a workload's key. The caller has it audited before it leaves.

        Raise AuthorityError, DatabaseError or InvalidRequest, and what `authorize` raises.
        """
        proof = authorize()
        at, token_id = self._state.clock.now_for_issuing(), secrets.token_hex(_TOKEN_ID_BYTES)
        issuer = self._authority.issuer()
        job = partial(mint_wit, proof.spiffe_id, public_key, algorithm, issuer, at=at, token_id=token_id, ttl=proof.ttl)
        try:
            made = await _signed(self._state, self._authority, issuer, at, authorize, proof, job)
        except IssueError as error:
            raise InvalidRequest(_KEY_TEXTS.get(error.code, str(error))) from None
        self._metrics.issued.labels("wit" if proof.entry_id else "minted_wit").inc()
        return made


async def _signed(
    state: State,
    authority: JwtAuthorityManager,
    issuer: JwtIssuer,
    at: int,
    authorize: Authorize,
    proof: AuthorizedToken,
    job: Callable[[], T],
) -> T:
    """Sign, and ask for leave once more when that took its time."""
    state.check_current()
    # Before: a rotation that goes on while a device signs must know of this token.
    authority.note(issuer.authority_id, min(at + proof.ttl, issuer.not_after))
    made = await authority.keys.sign(issuer.key, job)
    if isinstance(issuer.key, DeviceKey):
        state.check_current()
        if authorize() != proof:
            raise NotAdmitted("the entry changed while the token was signed; ask again")
    return made


# SPIRE's words.
_KEY_TEXTS: Final = {
    "unsupported_key": "malformed public key",
    "algorithm_mismatch": "invalid signing algorithm or key type",
}
