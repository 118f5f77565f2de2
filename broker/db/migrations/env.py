# SPDX-License-Identifier: Apache-2.0
"""Runs the migration steps on the connection that `firedoor.broker.db.migrate` hands over."""

from alembic import context

from firedoor.broker.db.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=False,
)
context.run_migrations()
