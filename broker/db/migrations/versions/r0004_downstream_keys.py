# SPDX-License-Identifier: Apache-2.0
"""The keys for tokens that authorities below us published."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "downstream_keys",
        sa.Column("key_id", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("entry_id", sa.String(length=255), nullable=False),
        sa.Column("agent_id", sa.String(length=2048), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_downstream_keys")),
    )
