# SPDX-License-Identifier: Apache-2.0
"""The rotation of one kind of authority, from the making of the next one to the end of the present one.

An authority's own life is in authority.py; here is the order in which two of them live it, so that nobody is cut off.
After each step a rotation waits. It *spreads* the next authority until everybody trusts it, has everybody *re-issued*
by it, and then *retires* the old one, which is tainted, until nobody hangs on it. An authority below one upstream
cannot be tainted; its rotation is finished once everybody is re-issued. What was tainted stays so: from there a
rotation goes on or waits, and cannot be aborted.

>>> ROTATION[Stage.SPREAD, Step.ACTIVATE]
<Stage.REISSUE: 'reissue'>
>>> advance(Stage.RETIRE, Step.ABORT)
Traceback (most recent call last):
firedoor.certs.errors.AuthorityError: the rotation's stage does not allow this: abort of a rotation that is in retire
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Final, get_args

from firedoor.certs.authority import Kind
from firedoor.certs.errors import AuthorityError, JournalError


class Stage(enum.Enum):
    """What a rotation is about: what it does next, or whom it waits for."""

    PREPARE = "prepare"
    SPREAD = "spread"
    REISSUE = "reissue"
    RETIRE = "retire"
    DONE = "done"
    ABORTED = "aborted"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self in (Stage.DONE, Stage.ABORTED)


class Step(enum.Enum):
    """What happens to a rotation."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    TAINT = "taint"
    REVOKE = "revoke"
    # The authority is below one upstream: there is nothing to taint.
    FINISH = "finish"
    ABORT = "abort"
    # Somebody else displaced one of the two authorities, or the key of the next one is gone.
    LOSE = "lose"


# What does not stand here is illegal.
ROTATION: Final[Mapping[tuple[Stage, Step], Stage]] = MappingProxyType(
    {
        (Stage.PREPARE, Step.PREPARE): Stage.SPREAD,
        (Stage.PREPARE, Step.ABORT): Stage.ABORTED,
        (Stage.PREPARE, Step.LOSE): Stage.ABORTED,
        (Stage.SPREAD, Step.ACTIVATE): Stage.REISSUE,
        (Stage.SPREAD, Step.ABORT): Stage.ABORTED,
        (Stage.SPREAD, Step.LOSE): Stage.ABORTED,
        (Stage.REISSUE, Step.TAINT): Stage.RETIRE,
        (Stage.REISSUE, Step.FINISH): Stage.DONE,
        (Stage.REISSUE, Step.ABORT): Stage.ABORTED,
        (Stage.REISSUE, Step.LOSE): Stage.ABORTED,
        (Stage.RETIRE, Step.REVOKE): Stage.DONE,
        (Stage.RETIRE, Step.LOSE): Stage.ABORTED,
    }
)


def advance(stage: Stage, step: Step) -> Stage:
    """Return the stage after a step. Raise AuthorityError."""
    try:
        return ROTATION[stage, step]
    except KeyError:
        raise AuthorityError("illegal_step", f"{step.value} of a rotation that is in {stage.value}") from None


def diagram() -> str:
    """Return the stages as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> prepare: start"]
    lines += [f"    {stage.value} --> {then.value}: {step.value}" for (stage, step), then in ROTATION.items()]
    lines += [f"    {stage.value} --> [*]" for stage in Stage if stage.ended]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Rotation:
    """One rotation, as the journal keeps it. Times are Unix seconds, spans seconds."""

    kind: Kind
    stage: Stage
    # Who asked for it, as the audit log names callers; "schedule" for the broker itself.
    by: str
    started_at: int
    # When the present stage began.
    since: int
    # IDs; of the next authority empty until it is made.
    old: str
    new: str = ""
    # Go on without those who are missing, once a stage has lasted for `patience`.
    force: bool = False
    patience: int = 0
    emergency: bool = False
    # How long what runs over the old authority's certificates may go on after it is tainted and nobody is missing.
    drain: int = 0
    # How long others, whom nobody can ask, may take to fetch the bundle before the next authority signs.
    others: int = 0
    # From when on no token is valid that the old authority signed; 0 for X.509.
    tokens_until: int = 0
    # Over whom it went on: the first few by name, and how many in all.
    over: tuple[str, ...] = ()
    over_count: int = 0
    # Why it ended before its time.
    reason: str = ""

    def after(self, step: Step, at: int, **changes: Any) -> Rotation:
        """Return the rotation after a step. Raise AuthorityError."""
        return replace(self, **changes, stage=advance(self.stage, step), since=at)

    def impatient(self, at: int) -> bool:
        """Say whether it goes on without those who are missing."""
        return self.force and at - self.since >= self.patience

    def gone_over(self, names: tuple[str, ...]) -> Rotation:
        """Return the rotation with those noted whom it goes on without."""
        fresh = tuple(name for name in dict.fromkeys(names) if name not in self.over)
        kept = (*self.over, *fresh)[:MAX_NAMES]
        return replace(self, over=kept, over_count=self.over_count + len(fresh))

    def to_json(self) -> bytes:
        """Write the journal record, which holds no secret."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        record = {"version": _VERSION, **values, "stage": self.stage.value, "over": list(self.over)}
        return json.dumps(record, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_json(cls, text: bytes) -> Rotation:
        """Read a journal record. Raise JournalError."""
        try:
            record = json.loads(text)
            if record.pop("version") != _VERSION:
                raise JournalError("malformed_journal", "its version is another one")
            values = {name: _checked(name, value) for name, value in record.items()}
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise JournalError("malformed_journal") from None


# Names kept of those whom a rotation went on without.
MAX_NAMES: Final = 100
_VERSION: Final = 1
_TYPES: Final[Mapping[str, type]] = MappingProxyType(
    dict.fromkeys(("started_at", "since", "patience", "drain", "others", "tokens_until", "over_count"), int)
    | dict.fromkeys(("force", "emergency"), bool)
    | dict.fromkeys(("by", "old", "new", "reason"), str)
)


def _checked(name: str, value: Any) -> Any:
    """Return a value of the record as its field holds it. Raise ValueError or KeyError."""
    if name == "stage":
        return Stage(value)
    if name == "kind":
        if value not in get_args(Kind):
            raise ValueError(name)
        return value
    if name == "over":
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(name)
        return tuple(value)
    if type(value) is not _TYPES[name]:
        raise ValueError(name)
    return value
