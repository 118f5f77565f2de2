# SPDX-License-Identifier: Apache-2.0
"""What an operator may not do, for somebody would become more than an operator by it.

Whoever writes an entry for an administrator's ID, or names the node below which one stands, has the administrator's
SVID a moment later; whoever writes the bundle of a trust domain makes up its IDs. The admin socket and administrators
pass.

Join tokens that nobody has used yet stand in the IDs of the entries below them. They are shown to administrators alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from firedoor.broker.agent import JOIN_TOKEN_PATH, join_token_id
from firedoor.broker.audit import digest
from firedoor.broker.entry import Entry
from firedoor.broker.errors import NotAuthorized
from firedoor.broker.rpc.matrix import Who
from firedoor.certs import Selector, SpiffeId, TrustDomain

if TYPE_CHECKING:
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

_UNBOUND: Final = (Who.LOCAL, Who.ADMIN)


def check_entries(state: State, call: Call, entries: Iterable[Entry]) -> None:
    """Return if the caller may write or delete these entries, as they are and as they will be. Raise NotAuthorized."""
    if call.who in _UNBOUND:
        return
    leading = state.entries.leading_to_privilege()
    for entry in entries:
        if state.is_privileged(entry) or entry.spiffe_id in leading:
            raise NotAuthorized(f"an operator may not write or delete entries of {entry.spiffe_id}: {_WHY}")


def check_ids(state: State, call: Call, *ids: SpiffeId) -> None:
    """Return if the caller may decide which node has these IDs. Raise NotAuthorized."""
    if call.who in _UNBOUND:
        return
    leading = state.entries.leading_to_privilege()
    for one in ids:
        if one in leading or state.roles.beyond_viewer(one):
            raise NotAuthorized(f"an operator may not name a node like this: {_WHY}")


def check_trust_domain(state: State, call: Call, trust_domain: TrustDomain) -> None:
    """Return if the caller may say how this trust domain is verified. Raise NotAuthorized."""
    if call.who not in _UNBOUND and trust_domain in state.roles.trust_domains:
        raise NotAuthorized(f"an operator may not write the bundle of {trust_domain}: somebody there administers")


def without_token(state: State, call: Call, entry: Entry) -> Entry:
    """Return an entry as the caller may see it: a join token that can still be used stands there hashed."""
    if call.who in _UNBOUND:
        return entry
    shown = {Selector.of(one.type, _hidden(state, one.value)) for one in entry.selectors}
    parent_id = SpiffeId.parse(_hidden(state, str(entry.parent_id)))
    return replace(entry, parent_id=parent_id, selectors=frozenset(shown))


def _hidden(state: State, text: str) -> str:
    before, path, token = text.partition(JOIN_TOKEN_PATH)
    if not path or join_token_id(state.trust_domain, token) in state.agents:
        return text
    # The characters of a path: a reader takes it for an ID.
    return before + path + digest(token.encode()).replace(":", "-")


_WHY: Final = "an administrator's ID, or another that opens more than workloads have, comes by it"
