# SPDX-License-Identifier: Apache-2.0
"""SPIRE's masks, by field name from the descriptors: no field can be forgotten or taken for another.

A mask that is absent means every field; a field that a mask does not name is left out. What no mask can name (`id`,
`trust_domain`) is always there.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def show(message: M, mask: Message | None) -> M:
    """Clear the fields that the mask leaves out, in place, and return the message."""
    if mask is not None:
        for field in mask.DESCRIPTOR.fields:
            if not getattr(mask, field.name):
                message.ClearField(field.name)
    return message


def overlay(present: M, given: M, mask: Message | None) -> M:
    """Return `present` with the fields that the mask names (all of them without one) taken from `given`."""
    if mask is None:
        return given
    result = type(present)()
    result.CopyFrom(present)
    only = type(given)()
    only.CopyFrom(given)
    named = {field.name for field in mask.DESCRIPTOR.fields if getattr(mask, field.name)}
    for field in present.DESCRIPTOR.fields:
        (result if field.name in named else only).ClearField(field.name)
    result.MergeFrom(only)
    return result
