"""The tables, and how those of an older version become today's: forward only, by numbered steps, at the start."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
    insert,
    inspect,
    select,
    text,
)

from relay.errors import StoreFailed

metadata = MetaData()
conversations = Table(
    "conversations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("upstream", Text, nullable=False),
    Column("account", Text),
    Column("remote", Boolean, nullable=False),
    Column("title", Text, nullable=False),
    Column("newest", Text),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Index("conversations_of_owner", "owner", "updated"),
)
messages = Table(
    "messages",
    metadata,
    Column("number", Integer, primary_key=True),  # the order in which they were said
    Column("id", Text, nullable=False, unique=True),
    Column("conversation_id", Text, nullable=False, index=True),
    Column("parent", Text),
    Column("role", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("model", Text),
    Column("finish_reason", Text),
    Column("created", Float, nullable=False),
    Column("reasoning", Text),
    Column("usage", Text),  # JSON
)
leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires", Float, nullable=False),
)
requests = Table(
    "requests",  # asks with an idempotency key
    metadata,
    Column("owner", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("conversation_id", Text, index=True),
    Column("outcome", Text),  # JSON
    Column("updated", Float, nullable=False, index=True),
)
version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

#: what makes version 2 of version 1, 3 of 2 ...; SQL that SQLite and PostgreSQL both take
STEPS: tuple[tuple[str, ...], ...] = (
    (
        "ALTER TABLE messages ADD COLUMN reasoning TEXT",
        "ALTER TABLE messages ADD COLUMN usage TEXT",
        "CREATE TABLE requests (owner TEXT NOT NULL, key TEXT NOT NULL, fingerprint TEXT NOT NULL, "
        "holder TEXT NOT NULL, state TEXT NOT NULL, conversation_id TEXT, outcome TEXT, updated FLOAT NOT NULL, "
        "PRIMARY KEY (owner, key))",
        "CREATE INDEX ix_requests_conversation_id ON requests (conversation_id)",
        "CREATE INDEX ix_requests_updated ON requests (updated)",
        "CREATE TABLE schema_version (version INTEGER NOT NULL)",
    ),
)
NEWEST = len(STEPS) + 1


def bring_up_to_date(connection: Connection) -> None:
    """Make the tables, or change an older version's. Raises StoreFailed for a newer version's: there is no way back."""
    there = inspect(connection).get_table_names()
    if "conversations" not in there:
        metadata.create_all(connection)
    else:
        found = (
            connection.execute(select(version)).scalar_one()
            if "schema_version" in there
            else 1
        )
        if found > NEWEST:
            raise StoreFailed(
                f"The database is of a newer version ({found}) than this service ({NEWEST}). Start the newer service, "
                "or name another DATABASE_URL."
            )
        if found == NEWEST:
            return
        for step in STEPS[found - 1 :]:
            for statement in step:
                connection.execute(text(statement))
    connection.execute(delete(version))
    connection.execute(insert(version), {"version": NEWEST})
