# SPDX-License-Identifier: Apache-2.0
"""With whom the trust domain federates, and where their bundles are."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "federation_relationships",
        sa.Column("trust_domain", sa.String(length=255), nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("endpoint_id", sa.String(length=2048), nullable=False),
        sa.PrimaryKeyConstraint("trust_domain", name=op.f("pk_federation_relationships")),
    )
