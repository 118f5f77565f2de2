# SPDX-License-Identifier: Apache-2.0
"""Signing JWT-SVIDs and WIT-SVIDs, and the proof without which nothing is signed.

What an X.509-SVID needs, a token needs too: `authorize_token` asks the very function that gives leave to sign a
certificate. Signing follows at once, with nothing in between that could let go of the event loop, so there is nothing
to ask for again.

Tokens are not in the table of what was issued. That table says which certificates live, so that they can be revoked and
replaced; a token can be neither: it is checked by whoever it is shown to, against the bundle alone, and lives for
minutes. The audit log has its `jti` and its `kid`, never the token.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from firedoor.broker.errors import InvalidRequest
from firedoor.broker.issuing import AuthorizedIssuance, authorize_mint, authorize_workload
from firedoor.certs import IssueError, JwtIssuer, JwtSvid, SpiffeId, WitSvid, check_audience, mint_jwt, mint_wit

if TYPE_CHECKING:
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State

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

    def __init__(self, state: State, issuer: Callable[[], JwtIssuer], metrics: Metrics, iss: str = "") -> None:
        self._state, self._issuer, self._metrics, self._iss = state, issuer, metrics, iss

    def sign(self, proof: AuthorizedToken, audience: Sequence[str]) -> JwtSvid:
        """Sign one token. The caller has it audited before it leaves. Raise AuthorityError or InvalidRequest."""
        at, token_id = self._state.clock.now_for_issuing(), secrets.token_hex(_TOKEN_ID_BYTES)
        try:
            made = mint_jwt(
                proof.spiffe_id, audience, self._issuer(), at=at, token_id=token_id, ttl=proof.ttl, iss=self._iss
            )
        except IssueError as error:
            raise InvalidRequest(str(error)) from None
        self._metrics.issued.labels("token" if proof.entry_id else "minted_token").inc()
        return made


class WitSigner:
    """Signs WIT-SVIDs with the active WIT authority."""

    def __init__(self, state: State, issuer: Callable[[], JwtIssuer], metrics: Metrics) -> None:
        self._state, self._issuer, self._metrics = state, issuer, metrics

    def sign(self, proof: AuthorizedToken, public_key: bytes, algorithm: str) -> WitSvid:
        """Sign one token for a workload's key. The caller has it audited before it leaves.

        Raise AuthorityError or InvalidRequest.
        """
        at, token_id = self._state.clock.now_for_issuing(), secrets.token_hex(_TOKEN_ID_BYTES)
        try:
            made = mint_wit(
                proof.spiffe_id, public_key, algorithm, self._issuer(), at=at, token_id=token_id, ttl=proof.ttl
            )
        except IssueError as error:
            raise InvalidRequest(_KEY_TEXTS.get(error.code, str(error))) from None
        self._metrics.issued.labels("wit" if proof.entry_id else "minted_wit").inc()
        return made


# SPIRE's words.
_KEY_TEXTS: Final = {
    "unsupported_key": "malformed public key",
    "algorithm_mismatch": "invalid signing algorithm or key type",
}
