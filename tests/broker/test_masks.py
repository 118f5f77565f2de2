# SPDX-License-Identifier: Apache-2.0
"""Masks: every field of every mask, each way."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from firedoor.broker.rpc.masks import overlay, show
from firedoor.wire import types


def filled(kind: type[Message], salt: int) -> Any:
    """Return a message with every field set, differently for each salt."""
    message = kind()
    for number, field in enumerate(kind.DESCRIPTOR.fields, start=salt * 100):
        value: Any
        match field.type:
            case field.TYPE_BOOL:
                value = salt == 1
            case field.TYPE_STRING:
                value = f"text {number}"
            case field.TYPE_BYTES:
                value = b"bytes %d" % number
            case field.TYPE_MESSAGE:
                value = None
            case _:
                value = number
        if field.is_repeated:
            if field.type == field.TYPE_MESSAGE:
                getattr(message, field.name).add().MergeFrom(filled(field.message_type._concrete_class, salt))
            else:
                getattr(message, field.name).append(value)
        elif field.type == field.TYPE_MESSAGE:
            inner = getattr(message, field.name)
            inner.SetInParent()
            inner.MergeFrom(filled(field.message_type._concrete_class, salt))
        else:
            setattr(message, field.name, value)
    return message


PAIRS = [
    (types.Entry, types.EntryMask, {"id"}),
    (types.Agent, types.AgentMask, {"id"}),
    (types.Bundle, types.BundleMask, {"trust_domain"}),
]
FIELDS = [(kind, mask, field.name) for kind, mask, _ in PAIRS for field in mask.DESCRIPTOR.fields]


@pytest.mark.parametrize(("kind", "mask", "always"), PAIRS)
def test_a_mask_names_every_field_but_the_key(kind: type[Message], mask: type[Message], always: set[str]) -> None:
    named = {field.name for field in mask.DESCRIPTOR.fields}
    assert named == {field.name for field in kind.DESCRIPTOR.fields} - always


@pytest.mark.parametrize(("kind", "mask", "name"), FIELDS)
def test_showing_one_field(kind: type[Message], mask: type[Message], name: str) -> None:
    message = filled(kind, 1)
    shown = show(filled(kind, 1), mask(**{name: True}))
    present = {field.name for field, _ in shown.ListFields()}
    assert name in present
    assert present - {name} <= {"id", "trust_domain"}
    assert getattr(shown, name) == getattr(message, name)


@pytest.mark.parametrize(("kind", "mask", "name"), FIELDS)
def test_overlaying_one_field_changes_that_field_alone(kind: type[Message], mask: type[Message], name: str) -> None:
    present, given = filled(kind, 1), filled(kind, 2)
    result = overlay(present, given, mask(**{name: True}))
    for field in kind.DESCRIPTOR.fields:
        expected = given if field.name == name else present
        assert getattr(result, field.name) == getattr(expected, field.name), field.name


def test_no_mask_is_every_field() -> None:
    assert show(filled(types.Entry, 1), None) == filled(types.Entry, 1)
    assert overlay(filled(types.Entry, 1), filled(types.Entry, 2), None) == filled(types.Entry, 2)


def test_an_overlay_leaves_its_inputs_alone() -> None:
    present, given = filled(types.Entry, 1), filled(types.Entry, 2)
    overlay(present, given, types.EntryMask(selectors=True, additional_attributes=True))
    assert present == filled(types.Entry, 1)
    assert given == filled(types.Entry, 2)
