# SPDX-License-Identifier: Apache-2.0
"""The revocation lists that brokers signed, for the sidecars of all."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, and on PostgreSQL the trigger that tells other brokers of it (r0005)."""
    op.create_table(
        "crls",
        sa.Column("authority_id", sa.String(length=64), nullable=False),
        sa.Column("anchor_id", sa.String(length=64), nullable=False),
        sa.Column("crl", sa.LargeBinary(), nullable=False),
        sa.Column("signers", sa.LargeBinary(), nullable=False),
        sa.Column("next_update", sa.BigInteger(), nullable=False),
        sa.Column("left_out", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("authority_id", name=op.f("pk_crls")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE TRIGGER firedoor_changed AFTER INSERT OR UPDATE OR DELETE ON crls "
            "FOR EACH STATEMENT EXECUTE FUNCTION firedoor_changed_any()"
        )
