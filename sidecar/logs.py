# SPDX-License-Identifier: Apache-2.0
"""Logs on stderr, as text for people or JSON lines for machines; what a record's `extra` holds becomes fields."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from firedoor.sidecar.config import Log

# What every record has; the rest was given as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Text(logging.Formatter):
    """Lines for people: time, level, message, key="value"."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        fields = "".join(f" {key}={json.dumps(value, default=str)}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname.lower():<7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        fields = _fields(record)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        line = {"time": _time(record), "level": record.levelname.lower(), "message": record.getMessage(), **fields}
        return json.dumps(line, default=str)


def set_up(config: Log) -> None:
    """Log to stderr from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if config.format == "json" else Text())
    root = logging.getLogger("firedoor")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(config.level.upper())
