# SPDX-License-Identifier: Apache-2.0
"""The parts of a view, encoded: whole, and as what changed since another one. Pure.

Serialized messages of one type that stand one after the other are their merger (protobuf's encoding guide), so both are
a matter of joining bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

from firedoor.wire import control_pb2
from firedoor.wire.views import sha256

_Delta: Final = control_pb2.Delta
_Keys: Final = control_pb2.Keys


@final
@dataclass(frozen=True, slots=True, eq=False)
class Keyed:
    """A list of a part: encoded fields by encoded key. `number` is that of the keys' field in Keys."""

    number: int
    items: Mapping[bytes, bytes]


@final
@dataclass(frozen=True, slots=True, eq=False)
class SharedPart:
    """A part that many views have. `kind`: its field in Part. `nested`: the field of the kind that holds all, if any.

    `content` is what the kind's message holds, `rest` what of it is in no list.
    """

    kind: int
    content: bytes
    rest: bytes
    lists: Sequence[Keyed]
    nested: int = 0
    # As a field of Update, and the hash of the Part.
    encoded: bytes = field(init=False)
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        """Encode it once."""
        part = encode_field(self.kind, self._nest(self.content))
        object.__setattr__(self, "encoded", encode_field(control_pb2.Update.PARTS_FIELD_NUMBER, part))
        object.__setattr__(self, "digest", sha256(part))

    def since(self, old: SharedPart) -> bytes:
        """Return the fields of a Delta that make this of another one of the same kind; nothing when it is the same."""
        if old is self or old.content == self.content:
            return b""
        put: list[bytes] = []
        removed: list[bytes] = []
        for now, before in zip(self.lists, old.lists, strict=True):
            put += (data for key, data in now.items.items() if before.items.get(key) != data)
            removed += (encode_field(now.number, key) for key in before.items if key not in now.items)
        fields = b""
        if put or self.rest != old.rest:
            fields = put_field(self.kind, self._nest(b"".join((self.rest, *put))))
        return fields + removed_field(removed)

    def _nest(self, content: bytes) -> bytes:
        return encode_field(self.nested, content) if self.nested else content


def put_field(kind: int, content: bytes) -> bytes:
    """Return the field of a Delta that puts what a kind of part holds."""
    return encode_field(_Delta.PUT_FIELD_NUMBER, encode_field(kind, content))


def removed_field(keys: Iterable[bytes]) -> bytes:
    """Return the field of a Delta that removes some keys, encoded as fields of Keys; nothing for none."""
    joined = b"".join(keys)
    return encode_field(_Delta.REMOVED_FIELD_NUMBER, joined) if joined else b""


def encode_field(number: int, content: bytes) -> bytes:
    """Encode a field: its number and "length-delimited", the length, the content (protobuf's encoding guide)."""
    length = bytearray()
    left = len(content)
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    length.append(left)
    return bytes([number << 3 | 2]) + length + content


def bundles_part(made: control_pb2.Bundles) -> SharedPart:
    """Return the bundles, the CAs below and the keys for tokens as a part."""
    rest = control_pb2.Bundles(intermediates_complete=made.intermediates_complete)
    lists = (
        _keyed(_Keys.BUNDLES_FIELD_NUMBER, ((one.trust_domain.encode(), one) for one in made.bundles), "bundles"),
        _keyed(
            _Keys.INTERMEDIATES_FIELD_NUMBER, ((one.key_sha256, one) for one in made.intermediates), "intermediates"
        ),
        _keyed(_Keys.TOKEN_KEYS_FIELD_NUMBER, ((one.key_id.encode(), one) for one in made.token_keys), "token_keys"),
    )
    return SharedPart(control_pb2.Part.BUNDLES_FIELD_NUMBER, _encoded(made), _encoded(rest), lists)


def _keyed(number: int, found: Iterable[tuple[bytes, object]], name: str) -> Keyed:
    """Encode messages as fields of Bundles."""
    return Keyed(number, {key: _encoded(control_pb2.Bundles(**{name: [one]})) for key, one in found})  # type: ignore[arg-type]


def policy_part(head: bytes, items: Sequence[Mapping[str, bytes]]) -> SharedPart:
    """Return a table as a part. `items`: segments, flows and services, as encoded fields by name; `head`: the rest."""
    numbers = (_Keys.SEGMENTS_FIELD_NUMBER, _Keys.FLOWS_FIELD_NUMBER, _Keys.SERVICES_FIELD_NUMBER)
    lists = [
        Keyed(number, {name.encode(): data for name, data in each.items()})
        for number, each in zip(numbers, items, strict=True)
    ]
    table = control_pb2.Policy.TABLE_FIELD_NUMBER
    content = b"".join((head, *(data for each in items for data in each.values())))
    return SharedPart(control_pb2.Part.POLICY_FIELD_NUMBER, content, head, lists, table)


def revocation_item(one: control_pb2.Revocation) -> tuple[bytes, bytes]:
    """Return a revocation's key and itself, encoded as they stand in a part of revocations."""
    return _revocation_key(one), _encoded(control_pb2.Revocations(revocations=[one]))


def revocations_part(items: Iterable[tuple[bytes, bytes]]) -> SharedPart:
    """Return revocations, which are sorted, as a part."""
    found = dict(items)
    kind = control_pb2.Part.REVOCATIONS_FIELD_NUMBER
    return SharedPart(kind, b"".join(found.values()), b"", (Keyed(_Keys.REVOCATIONS_FIELD_NUMBER, found),))


def crls_part(crls: Iterable[control_pb2.Crl]) -> SharedPart:
    """Return revocation lists, which are sorted by authority, as a part."""
    items = {one.authority_id.encode(): _encoded(control_pb2.Crls(crls=[one])) for one in crls}
    kind = control_pb2.Part.CRLS_FIELD_NUMBER
    return SharedPart(kind, b"".join(items.values()), b"", (Keyed(_Keys.CRLS_FIELD_NUMBER, items),))


def _revocation_key(one: control_pb2.Revocation) -> bytes:
    key = control_pb2.Revocation()
    if one.HasField("issued_before"):
        key.issued_before.pattern = one.issued_before.pattern
    elif one.HasField("serial"):
        key.serial = one.serial
    else:
        key.authority_id = one.authority_id
    return _encoded(key)


def _encoded(
    message: control_pb2.Bundles | control_pb2.Revocations | control_pb2.Revocation | control_pb2.Crls,
) -> bytes:
    return message.SerializeToString(deterministic=True)
