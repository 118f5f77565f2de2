# SPDX-License-Identifier: Apache-2.0
"""Several brokers on one database: a journal of authorities for each, and what tells each what the others change."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# "firedoor" in ASCII: the lock of whoever writes. Whoever changes something past the brokers takes it here.
_LOCK = 0x66697265646F6F72
# Of a table with few rows any change is one; of the others it is told which row it was.
_WHOLE = (
    "bundles",
    "downstream_keys",
    "federation_relationships",
    "generation",
    "intermediates",
    "policy_documents",
    "revocations",
)
_BY_ID = ("agents", "entries")


def upgrade() -> None:
    """Make the tables, and on PostgreSQL the triggers."""
    op.create_table(
        "journals",
        sa.Column("broker_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("journal", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("broker_id", "kind", name="pk_journals"),
    )
    op.execute("INSERT INTO journals (kind, journal) SELECT kind, journal FROM authorities")
    op.drop_table("authorities")
    op.rename_table("journals", "authorities")
    op.create_table(
        "changes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=2048), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changes")),
    )
    op.create_table(
        "brokers",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("committed", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_brokers")),
    )
    if op.get_bind().dialect.name == "postgresql":
        _tell("firedoor_changed_any", "''")
        _tell("firedoor_changed_row", "COALESCE(NEW.id, OLD.id)")
        for table in _WHOLE:
            _follow(table, "STATEMENT", "firedoor_changed_any")
        for table in _BY_ID:
            _follow(table, "ROW", "firedoor_changed_row")


_FUNCTION = """
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({lock});
    INSERT INTO changes (kind, key, made_at)
        VALUES (TG_TABLE_NAME, {key}, floor(extract(epoch FROM clock_timestamp())));
    PERFORM pg_notify('firedoor_changes', '');
    RETURN NULL;
END
$$
"""


def _tell(name: str, key: str) -> None:
    """Make a function that writes a change down and has it announced at commit, once a transaction."""
    op.execute(_FUNCTION.format(name=name, lock=_LOCK, key=key))


def _follow(table: str, each: str, function: str) -> None:
    op.execute(
        f"CREATE TRIGGER firedoor_changed AFTER INSERT OR UPDATE OR DELETE ON {table} "
        f"FOR EACH {each} EXECUTE FUNCTION {function}()"
    )
