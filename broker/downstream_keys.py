# SPDX-License-Identifier: Apache-2.0
"""The keys for JWT- and WIT-SVIDs that authorities below us publish in our bundle.

Whoever has the bundle takes what they sign. Our own sidecars learn with it for which segments a key may sign
(`downstream.limited`); others cannot know, so that such keys leave the bundle as soon as they count no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from sqlalchemy import Connection

from firedoor.broker.authority import change_bundle
from firedoor.broker.db.intermediate_rows import (
    DownstreamKey,
    Holder,
    delete_downstream_keys,
    insert_downstream_key,
)
from firedoor.broker.downstream import MAX_KEYS, key_counts
from firedoor.broker.errors import AlreadyExists, InvalidRequest
from firedoor.certs import BundleError, JwtKey, TrustBundle

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.state import State
    from firedoor.wire import types

Kind = Literal["jwt", "wit"]
_LABEL: Final = {"jwt": "JWT", "wit": "WIT"}

MAX_KEY_ID_BYTES: Final = 255
# An RSA-8192 key takes 1.1 KiB.
MAX_KEY_BYTES: Final = 2048


def read_key(state: State, kind: Kind, given: types.JWTKey | types.WITKey, ttl: int) -> JwtKey:
    """Check a key, and cap its life at so many seconds. Raise InvalidRequest."""
    label, now = _LABEL[kind], state.clock.now()
    if not given.key_id or len(given.key_id.encode()) > MAX_KEY_ID_BYTES or not given.key_id.isprintable():
        raise InvalidRequest(f"invalid {label} authority: a key ID has 1 to {MAX_KEY_ID_BYTES} printable bytes")
    if len(given.public_key) > MAX_KEY_BYTES:
        raise InvalidRequest(f"invalid {label} authority: the key is longer than {MAX_KEY_BYTES} bytes")
    if given.expires_at < 0 or 0 < given.expires_at <= now:
        raise InvalidRequest(f"invalid {label} authority: it has expired")
    key = JwtKey(given.key_id, given.public_key, min(given.expires_at or now + ttl, now + ttl))
    try:
        _with(kind, TrustBundle(state.trust_domain), key)
    except BundleError as error:
        raise InvalidRequest(f"invalid {label} authority: {error}") from None
    return key


async def publish(state: State, kind: Kind, key: JwtKey, holder: Holder) -> list[str]:
    """Put a key into our bundle, in place of the entry's oldest ones when they are too many; return those.

    The same key again changes nothing. Raise AlreadyExists when another one has its ID.
    """
    now = state.clock.now()
    made = DownstreamKey(key.key_id, kind, holder.entry_id, holder.agent_id, now)
    dropped: list[str] = []

    def change(bundle: TrustBundle) -> TrustBundle:
        if _present(state, bundle, key, made):
            return bundle
        mine = [one for one in state.downstream_keys.values() if (one.entry_id, one.kind) == (made.entry_id, kind)]
        oldest = sorted(mine, key=lambda one: one.published_at)[: max(0, len(mine) + 1 - MAX_KEYS)]
        dropped[:] = [one.key_id for one in oldest]
        return _with(kind, bundle.without_keys(dropped), key)

    def write(connection: Connection) -> None:
        delete_downstream_keys(connection, [*dropped, made.key_id])
        insert_downstream_key(connection, made)

    def apply() -> None:
        for key_id in dropped:
            state.downstream_keys.pop(key_id, None)
        state.downstream_keys[made.key_id] = made

    await change_bundle(state, change, write, apply)
    return dropped


async def sweep(state: State, audit: Audit) -> None:
    """Take what counts no more out of the bundle, and forget what left it otherwise."""
    bundle = state.bundles.get(state.trust_domain)
    if bundle is None or not state.downstream_keys:
        return
    present = {one.key_id for one in (*bundle.jwt_keys, *bundle.wit_keys)}
    gone = [one.key_id for one in state.downstream_keys.values() if one.key_id not in present]
    ended = [one.key_id for one in state.downstream_keys.values() if not key_counts(state, one)]

    def forget(_: None = None) -> None:
        for key_id in (*gone, *ended):
            state.downstream_keys.pop(key_id, None)

    def write(connection: Connection) -> None:
        delete_downstream_keys(connection, [*gone, *ended])

    if set(ended) & present:
        await change_bundle(state, lambda bundle: bundle.without_keys(ended), write, forget)
        audit.event("downstream_keys_removed", authority_ids=ended, generation=str(state.generation))
    elif gone or ended:
        await state.database.write(write, forget)


def _present(state: State, bundle: TrustBundle, key: JwtKey, made: DownstreamKey) -> bool:
    """Say whether the very key is there already. Raise AlreadyExists for another one of its ID, or another's."""
    for one in (*bundle.jwt_keys, *bundle.wit_keys):
        if one.key_id == key.key_id:
            owner = state.downstream_keys.get(key.key_id)
            same = owner is not None and (owner.entry_id, owner.kind) == (made.entry_id, made.kind)
            if not same or one.public_key != key.public_key:
                raise AlreadyExists("the bundle has another key of that ID")
            return True
    return False


def _with(kind: Kind, bundle: TrustBundle, key: JwtKey) -> TrustBundle:
    return bundle.with_jwt_key(key) if kind == "jwt" else bundle.with_wit_key(key)
