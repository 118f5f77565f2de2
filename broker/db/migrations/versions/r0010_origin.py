# SPDX-License-Identifier: Apache-2.0
"""What made an entry, when nobody did by hand."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("entries", sa.Column("origin", sa.String(length=512), nullable=False, server_default=""))
