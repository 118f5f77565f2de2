# SPDX-License-Identifier: Apache-2.0
"""Objects that many ask for are read once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from firedoor.broker.kubernetes import recent
from firedoor.broker.kubernetes.recent import Recent
from firedoor.cluster.errors import ClusterUnavailable


class Counting:
    """An API that counts what it is asked, and fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.asked: list[str] = []
        self.failures = failures

    async def get(self, path: str) -> Mapping[str, Any] | None:
        self.asked.append(path)
        number = len(self.asked)
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise ClusterUnavailable("away")
        return {"number": number}


async def test_who_asks_at_once_shares_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_FRESH", 1e9)
    api = Counting()
    found = Recent(api)  # type: ignore[arg-type]
    answers = await asyncio.gather(*(found.get("/a") for _ in range(5)), found.get("/b"))
    assert [one["number"] for one in answers if one] == [1, 1, 1, 1, 1, 2]
    assert api.asked == ["/a", "/b"]
    assert await found.get("/a") == {"number": 1}
    monkeypatch.setattr(recent, "_FRESH", -1.0)
    assert await found.get("/a") == {"number": 3}


async def test_a_failure_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_FRESH", 1e9)
    found = Recent(Counting(failures=1))  # type: ignore[arg-type]
    with pytest.raises(ClusterUnavailable):
        await found.get("/a")
    assert await found.get("/a") == {"number": 2}


async def test_so_many_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_FRESH", 1e9)
    monkeypatch.setattr(recent, "_MOST", 2)
    api = Counting()
    found = Recent(api)  # type: ignore[arg-type]
    for path in ("/a", "/b", "/c", "/a"):
        await found.get(path)
    assert api.asked == ["/a", "/b", "/c", "/a"]


async def test_what_is_old_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_FRESH", -1.0)
    found = Recent(Counting())  # type: ignore[arg-type]
    for number in range(10):
        await found.get(f"/{number}")
    assert len(found._answers) == 1
