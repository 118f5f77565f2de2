# SPDX-License-Identifier: Apache-2.0
"""Brings the database to the present schema at start; the steps are shipped inside the package."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from firedoor.broker.db import postgres
from firedoor.broker.errors import DatabaseError

_log = logging.getLogger("firedoor.broker.db")
SCRIPTS: Final = Path(__file__).parent / "migrations"


def migrate(engine: Engine) -> None:
    """Run the steps that are missing, in one transaction. Raise DatabaseError, also for a newer schema."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    head = ScriptDirectory.from_config(config).get_current_head()
    try:
        with engine.begin() as connection:
            present = MigrationContext.configure(connection).get_current_revision()
            if present == head:
                return
            if engine.dialect.name == "postgresql":
                # A step may take as long as it must; other brokers' transactions wait for it and are made again.
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError:
        raise DatabaseError("the database was written by a newer firedoor; start that one") from None
    except SQLAlchemyError as error:
        if engine.dialect.name == "postgresql":
            raise postgres.sentence(error) from error
        raise DatabaseError(f"the database cannot be brought to the present schema: {error}") from error
    _log.info("database schema is now %s", head)
