# SPDX-License-Identifier: Apache-2.0
"""Services that were derived from a cluster's objects."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, and on PostgreSQL the trigger that tells other brokers which row it was (r0005)."""
    op.create_table(
        "directory",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("service", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_directory")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE TRIGGER firedoor_changed AFTER INSERT OR UPDATE OR DELETE ON directory "
            "FOR EACH ROW EXECUTE FUNCTION firedoor_changed_row()"
        )
