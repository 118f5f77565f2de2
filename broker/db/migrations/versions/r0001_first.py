# SPDX-License-Identifier: Apache-2.0
"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "agents",
        sa.Column("id", sa.String(length=2048), nullable=False),
        sa.Column("attestation_type", sa.String(length=255), nullable=False),
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("new_serial", sa.String(length=64), nullable=False),
        sa.Column("new_not_after", sa.BigInteger(), nullable=False),
        sa.Column("can_reattest", sa.Boolean(), nullable=False),
        sa.Column("banned", sa.Boolean(), nullable=False),
        sa.Column("agent_version", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
    )
    op.create_table(
        "authorities",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("journal", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_authorities")),
    )
    op.create_table(
        "bundles",
        sa.Column("trust_domain", sa.String(length=255), nullable=False),
        sa.Column("jwks", sa.LargeBinary(), nullable=False),
        sa.Column("tainted", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("trust_domain", name=op.f("pk_bundles")),
    )
    op.create_table(
        "entries",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("similarity", sa.LargeBinary(length=32), nullable=False),
        sa.Column("spiffe_id", sa.String(length=2048), nullable=False),
        sa.Column("parent_id", sa.String(length=2048), nullable=False),
        sa.Column("x509_svid_ttl", sa.Integer(), nullable=False),
        sa.Column("jwt_svid_ttl", sa.Integer(), nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("downstream", sa.Boolean(), nullable=False),
        sa.Column("store_svid", sa.Boolean(), nullable=False),
        sa.Column("disable_x509_svid_prefetch", sa.Boolean(), nullable=False),
        sa.Column("jwt_svid_include_jti", sa.Boolean(), nullable=False),
        sa.Column("has_attributes", sa.Boolean(), nullable=False),
        sa.Column("hint", sa.String(length=1024), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("revision_number", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_entries")),
        sa.UniqueConstraint("similarity", name=op.f("uq_entries_similarity")),
    )
    op.create_index(op.f("ix_entries_expires_at"), "entries", ["expires_at"], unique=False)
    op.create_index(op.f("ix_entries_parent_id"), "entries", ["parent_id"], unique=False)
    op.create_index(op.f("ix_entries_spiffe_id"), "entries", ["spiffe_id"], unique=False)
    op.create_table(
        "generation",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generation")),
    )
    op.create_table(
        "issued",
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("spiffe_id", sa.String(length=2048), nullable=False),
        sa.Column("entry_id", sa.String(length=255), nullable=False),
        sa.Column("agent_id", sa.String(length=2048), nullable=False),
        sa.Column("authority_id", sa.String(length=64), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_issued")),
    )
    op.create_index(op.f("ix_issued_agent_id"), "issued", ["agent_id"], unique=False)
    op.create_index(op.f("ix_issued_entry_id"), "issued", ["entry_id"], unique=False)
    op.create_index(op.f("ix_issued_not_after"), "issued", ["not_after"], unique=False)
    op.create_table(
        "join_tokens",
        sa.Column("token_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("token_sha256", name=op.f("pk_join_tokens")),
    )
    op.create_index(op.f("ix_join_tokens_expires_at"), "join_tokens", ["expires_at"], unique=False)
    op.create_table(
        "policy_documents",
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=1024), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_policy_documents")),
    )
    op.create_table(
        "revocations",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("value", sa.String(length=2048), nullable=False),
        sa.Column("issued_before", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=255), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "value", name=op.f("pk_revocations")),
    )
    op.create_index("ix_revocations_expires_at", "revocations", ["expires_at"], unique=False)
    op.create_table(
        "agent_selectors",
        sa.Column("agent_id", sa.String(length=2048), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_agent_selectors_agent_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_id", "type", "value", name=op.f("pk_agent_selectors")),
    )
    op.create_table(
        "entry_dns_names",
        sa.Column("entry_id", sa.String(length=255), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_id"], ["entries.id"], name=op.f("fk_entry_dns_names_entry_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("entry_id", "position", name=op.f("pk_entry_dns_names")),
    )
    op.create_table(
        "entry_federates",
        sa.Column("entry_id", sa.String(length=255), nullable=False),
        sa.Column("trust_domain", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_id"], ["entries.id"], name=op.f("fk_entry_federates_entry_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["trust_domain"], ["bundles.trust_domain"], name=op.f("fk_entry_federates_trust_domain")
        ),
        sa.PrimaryKeyConstraint("entry_id", "trust_domain", name=op.f("pk_entry_federates")),
    )
    op.create_index(op.f("ix_entry_federates_trust_domain"), "entry_federates", ["trust_domain"], unique=False)
    op.create_table(
        "entry_selectors",
        sa.Column("entry_id", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_id"], ["entries.id"], name=op.f("fk_entry_selectors_entry_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("entry_id", "type", "value", name=op.f("pk_entry_selectors")),
    )
