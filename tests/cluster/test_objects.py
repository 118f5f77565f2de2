# SPDX-License-Identifier: Apache-2.0
"""What is a list of the right kind, and what an event; an empty list is believed only when it is one."""

from __future__ import annotations

from typing import Any

import pytest

from firedoor.cluster.errors import ClusterError, Gone, ObjectsUnreadable
from firedoor.cluster.objects import Event, Page

VERSION = {"resourceVersion": "9"}
LISTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "is no PodList"),
    "a status": ({"kind": "Status", "metadata": VERSION, "items": []}, "is no PodList"),
    "no kind": ({"metadata": VERSION, "items": []}, "is no PodList"),
    "another kind": ({"kind": "NodeList", "metadata": VERSION, "items": []}, "is no PodList"),
    "one object": ({"kind": "Pod", "metadata": VERSION, "items": []}, "is no PodList"),
    "without items": ({"kind": "PodList", "metadata": VERSION}, "is no PodList"),
    "items that are null": ({"kind": "PodList", "metadata": VERSION, "items": None}, "is no PodList"),
    "items that are an object": ({"kind": "PodList", "metadata": VERSION, "items": {}}, "is no PodList"),
    "without metadata": ({"kind": "PodList", "items": []}, "is no PodList"),
    "without a version": ({"kind": "PodList", "metadata": {}, "items": []}, "has no version"),
    "an empty version": ({"kind": "PodList", "metadata": {"resourceVersion": ""}, "items": []}, "has no version"),
    "a number for a version": ({"kind": "PodList", "metadata": {"resourceVersion": 9}, "items": []}, "has no version"),
    "an odd rest": ({"kind": "PodList", "metadata": {**VERSION, "continue": 7}, "items": []}, "has no version"),
    "an item that is none": ({"kind": "PodList", "metadata": VERSION, "items": [{}, 7]}, "that are no objects"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_are_none(case: str) -> None:
    answer, words = LISTS[case]
    with pytest.raises(ObjectsUnreadable, match=words):
        Page.read(answer, "Pod")


def test_a_page() -> None:
    more = {"kind": "PodList", "metadata": {**VERSION, "continue": "x"}, "items": [{"a": 1}]}
    assert Page.read(more, "Pod") == Page([{"a": 1}], "9", "x")
    assert Page.read({"kind": "PodList", "metadata": VERSION, "items": []}, "Pod") == Page([], "9", "")


EVENTS: dict[str, tuple[dict[str, Any], type[ClusterError], str]] = {
    "nothing": ({}, ObjectsUnreadable, "without an object"),
    "no object": ({"type": "ADDED", "object": []}, ObjectsUnreadable, "without an object"),
    "no type": ({"object": {"metadata": VERSION}}, ObjectsUnreadable, "without an object"),
    "an error": ({"type": "ERROR", "object": {"code": 500}}, ObjectsUnreadable, "by an error"),
    "it has forgotten": ({"type": "ERROR", "object": {"code": 410}}, Gone, "has forgotten"),
    "no metadata": ({"type": "ADDED", "object": {}}, ObjectsUnreadable, "without a version"),
    "no version": ({"type": "BOOKMARK", "object": {"metadata": {}}}, ObjectsUnreadable, "without a version"),
}


@pytest.mark.parametrize("case", EVENTS)
def test_events_that_are_none(case: str) -> None:
    found, kind, words = EVENTS[case]
    with pytest.raises(kind, match=words):
        Event.read(found)


def test_an_event() -> None:
    seen = {"metadata": VERSION}
    assert Event.read({"type": "DELETED", "object": seen}) == Event("DELETED", seen, "9")
