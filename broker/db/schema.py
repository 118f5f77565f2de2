# SPDX-License-Identifier: Apache-2.0
"""The tables, the same on SQLite and PostgreSQL.

Times are Unix seconds. Private keys are never in the database. A join token stands in its table as a SHA-256; the ID of
the agent that attests by one ends in it, as SPIRE has it, so entries below such an agent name it.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row: the state that the broker publishes. `epoch` is the time at which the database was made.
generation = Table(
    "generation",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),
)

entries = Table(
    "entries",
    METADATA,
    Column("id", String(255), primary_key=True),
    # SHA-256 over (spiffe_id, parent_id, selector set): two entries never agree in all three.
    Column("similarity", LargeBinary(32), nullable=False, unique=True),
    Column("spiffe_id", String(2048), nullable=False, index=True),
    Column("parent_id", String(2048), nullable=False, index=True),
    Column("x509_svid_ttl", Integer, nullable=False),
    Column("jwt_svid_ttl", Integer, nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("downstream", Boolean, nullable=False),
    Column("store_svid", Boolean, nullable=False),
    Column("disable_x509_svid_prefetch", Boolean, nullable=False),
    Column("jwt_svid_include_jti", Boolean, nullable=False),
    # Whether `additional_attributes` was given at all: SPIRE's clients tell the two apart.
    Column("has_attributes", Boolean, nullable=False),
    Column("hint", String(1024), nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("revision_number", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # What made it; empty: somebody did by hand.
    Column("origin", String(512), nullable=False, server_default=""),
)


def _of_entry() -> Column[str]:
    return Column("entry_id", String(255), ForeignKey("entries.id", ondelete="CASCADE"), primary_key=True)


entry_selectors = Table(
    "entry_selectors",
    METADATA,
    _of_entry(),
    Column("type", String(255), primary_key=True),
    Column("value", Text, primary_key=True),
)

entry_dns_names = Table(
    "entry_dns_names",
    METADATA,
    _of_entry(),
    # The first DNS name becomes the subject's common name, so the order counts.
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", String(255), nullable=False),
)

# For which segments a downstream entry's authority may issue; no row stands for the fallback segment.
entry_segments = Table(
    "entry_segments",
    METADATA,
    _of_entry(),
    Column("segment", String(63), primary_key=True),
)

bundles = Table(
    "bundles",
    METADATA,
    Column("trust_domain", String(255), primary_key=True),
    # SPIFFE bundle format (JWKS), with its sequence number and refresh hint inside.
    Column("jwks", LargeBinary, nullable=False),
    # IDs of the tainted authorities, separated by blanks: the bundle format has no field for them. An X.509 authority's
    # is hex; a token key's, which somebody else may have chosen, is quoted and stands after "key:".
    Column("tainted", Text, nullable=False),
)

entry_federates = Table(
    "entry_federates",
    METADATA,
    _of_entry(),
    Column("trust_domain", String(255), ForeignKey("bundles.trust_domain"), primary_key=True, index=True),
)

# Where the bundles of other trust domains are fetched. A trust domain is never guessed from the URL.
federation_relationships = Table(
    "federation_relationships",
    METADATA,
    Column("trust_domain", String(255), primary_key=True),
    Column("url", String(2048), nullable=False),
    # Profile https_spiffe: whom the endpoint must prove to be. Empty: https_web.
    Column("endpoint_id", String(2048), nullable=False),
    # What made it; empty: somebody did by hand.
    Column("origin", String(512), nullable=False, server_default=""),
)

agents = Table(
    "agents",
    METADATA,
    Column("id", String(2048), primary_key=True),
    Column("attestation_type", String(255), nullable=False),
    # Decimal, as SPIRE shows it. `new_serial` counts from its first use; until then both do.
    Column("serial", String(64), nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("new_serial", String(64), nullable=False),
    Column("new_not_after", BigInteger, nullable=False),
    Column("can_reattest", Boolean, nullable=False),
    Column("banned", Boolean, nullable=False),
    Column("agent_version", String(255), nullable=False),
)

agent_selectors = Table(
    "agent_selectors",
    METADATA,
    Column("agent_id", String(2048), ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    Column("type", String(255), primary_key=True),
    Column("value", Text, primary_key=True),
)

join_tokens = Table(
    "join_tokens",
    METADATA,
    Column("token_sha256", LargeBinary(32), primary_key=True),
    Column("expires_at", BigInteger, nullable=False, index=True),
)

# Tokens of pods that were used: each is good for one attestation. Kept until no clock of ours takes it any more.
spent_tokens = Table(
    "spent_tokens",
    METADATA,
    # Over issuer and `jti`.
    Column("token_sha256", LargeBinary(32), primary_key=True),
    Column("expires_at", BigInteger, nullable=False, index=True),
)

# The journals of the brokers' authorities, a record a broker and kind; their keys are in each one's key manager.
authorities = Table(
    "authorities",
    METADATA,
    # Empty for the only broker of an SQLite database.
    Column("broker_id", String(64), primary_key=True, server_default=""),
    Column("kind", String(16), primary_key=True),
    Column("journal", LargeBinary, nullable=False),
)

policy_documents = Table(
    "policy_documents",
    METADATA,
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", String(1024), nullable=False),
    Column("text", Text, nullable=False),
)

# What was signed and still lives; written in the transaction that the signature waits for, pruned at `not_after`.
issued = Table(
    "issued",
    METADATA,
    # Lower-case hex without leading zeros.
    Column("serial", String(64), primary_key=True),
    Column("spiffe_id", String(2048), nullable=False),
    # Empty for an agent's own certificate.
    Column("entry_id", String(255), nullable=False, index=True),
    Column("agent_id", String(2048), nullable=False, index=True),
    Column("authority_id", String(64), nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False, index=True),
)

# The CAs that were given to authorities below us, beside their rows in `issued`. Not tied to the entry's row: what an
# entry that is gone gave out must stay known, so that its key is not listed again.
intermediates = Table(
    "intermediates",
    METADATA,
    Column("serial", String(64), primary_key=True),
    # SHA-256 over the subjectPublicKeyInfo, lower-case hex.
    Column("key_sha256", String(64), nullable=False),
    Column("entry_id", String(255), nullable=False),
    Column("authority_id", String(64), nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False, index=True),
)

# The keys in our own bundle that authorities below us published, for JWT- and WIT-SVIDs.
downstream_keys = Table(
    "downstream_keys",
    METADATA,
    Column("key_id", String(255), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("entry_id", String(255), nullable=False),
    Column("agent_id", String(2048), nullable=False),
    Column("published_at", BigInteger, nullable=False),
)

revocations = Table(
    "revocations",
    METADATA,
    # "serial", "authority" or "pattern"; a pattern counts for what was issued before `issued_before`.
    Column("kind", String(16), primary_key=True),
    Column("value", String(2048), primary_key=True),
    Column("issued_before", BigInteger, nullable=False),
    Column("reason", String(255), nullable=False),
    # From when on nothing that it names can be valid any more.
    Column("expires_at", BigInteger, nullable=False),
)

Index("ix_revocations_expires_at", revocations.c.expires_at)

# The latest revocation list of each authority of all brokers; its broker signs another in time.
crls = Table(
    "crls",
    METADATA,
    Column("authority_id", String(64), primary_key=True),
    # The subject key ID of the root that vouches for the authority.
    Column("anchor_id", String(64), nullable=False),
    Column("crl", LargeBinary, nullable=False),
    # The authority's certificate and those between it and the root, one after the other.
    Column("signers", LargeBinary, nullable=False),
    Column("next_update", BigInteger, nullable=False),
    # How many serial numbers it should have and has not.
    Column("left_out", Integer, nullable=False),
)

# Services that were derived from a cluster's objects; the policy's own are in `policy_documents`.
directory = Table(
    "directory",
    METADATA,
    # Its name.
    Column("id", String(63), primary_key=True),
    # What it was derived from, as a person reads it.
    Column("source", String(255), nullable=False),
    # One of policy.proto, encoded.
    Column("service", LargeBinary, nullable=False),
)

# What was committed to the tables that brokers keep in memory; triggers write it on PostgreSQL, see change_rows.py.
changes = Table(
    "changes",
    METADATA,
    # SQLite numbers a column of the very type INTEGER by itself.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("kind", String(32), nullable=False),
    # Empty: any row of the kind.
    Column("key", String(2048), nullable=False),
    Column("made_at", BigInteger, nullable=False),
)

# The latest generation that each sidecar acknowledged, for the brokers that it is not connected to.
acknowledged = Table(
    "acknowledged",
    METADATA,
    Column("agent_id", String(2048), ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),
)

# The brokers on a PostgreSQL database.
brokers = Table(
    "brokers",
    METADATA,
    Column("id", String(64), primary_key=True),
    # For whoever looks.
    Column("host", String(255), nullable=False),
    # By the database's clock.
    Column("seen_at", BigInteger, nullable=False),
    # Left by its last transaction, so that it finds out whether that was committed.
    Column("committed", String(64), nullable=False),
)

# What two people open together for a while. Kept after its end, so that it can be looked up.
grants = Table(
    "grants",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("segment", String(63), nullable=False),
    Column("requester", String(2048), nullable=False),
    Column("reason", Text, nullable=False),
    Column("ttl", Integer, nullable=False),
    Column("requested_at", BigInteger, nullable=False, index=True),
    # Empty and 0 until it is so.
    Column("approver", String(2048), nullable=False),
    Column("approved_at", BigInteger, nullable=False),
    Column("serial", String(64), nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger, nullable=False),
    # An ID, or "time".
    Column("ended_by", String(2048), nullable=False),
    Column("ended_at", BigInteger, nullable=False),
)
