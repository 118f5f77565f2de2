# SPDX-License-Identifier: Apache-2.0
"""For which segments the authorities below us may issue, and the CAs that they were given."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "entry_segments",
        sa.Column("entry_id", sa.String(length=255), nullable=False),
        sa.Column("segment", sa.String(length=63), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_id"], ["entries.id"], name=op.f("fk_entry_segments_entry_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("entry_id", "segment", name=op.f("pk_entry_segments")),
    )
    op.create_table(
        "intermediates",
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("entry_id", sa.String(length=255), nullable=False),
        sa.Column("authority_id", sa.String(length=64), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_intermediates")),
    )
    op.create_index(op.f("ix_intermediates_not_after"), "intermediates", ["not_after"], unique=False)
