"""The tables, and the migration of an older version's: forward only, in numbered steps, at the start."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
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
    # of its stored messages, as `relay.tables.messages.size_of` counts it
    Column("size", BigInteger, nullable=False),
    Column("name", Text),  # unique among its owner's: INDEX_OF_NAMES
    Index("conversations_of_owner", "owner", "updated"),
)
messages = Table(
    "messages",
    metadata,
    Column("number", Integer, primary_key=True),  # the order in which they were added
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
    Column("payloads", Text),  # JSON, of what text alone cannot carry
    Column("echo", Text),  # JSON
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
owners = Table(
    "owners",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("last_asked", Float, nullable=False),
)
tokens = Table(
    "tokens",  # of accounts with a refresh token, and access tokens of the pool
    metadata,
    Column("id", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("refresh_token", Text, nullable=False),
    Column("access_token", Text),
    Column("expires", Float),
    Column("began", Float),
    Column("dead", Text),
    Column("updated", Float, nullable=False, index=True),
    Column("workspace", Text, nullable=False, server_default=""),
)
rests = Table(
    "rests",  # of accounts that are not asked for a while
    metadata,
    Column("account", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("token", Text, primary_key=True),
    Column("code", Text, nullable=False),
    Column("since", Float, nullable=False),
    Column("until", Float, nullable=False),
)
revisions = Table(
    "revisions",  # counts the changes of what processes keep in memory
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
)
usage = Table(
    "usage",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("day", Text, primary_key=True),  # as in 2026-12-31, UTC
    Column("upstream", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("asks", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("estimated_tokens", BigInteger, nullable=False),
)
version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

#: as a statement, because SQLAlchemy loads PostgreSQL's dialect to check a condition of an index: 2 MB
INDEX_OF_NAMES = "CREATE UNIQUE INDEX conversations_of_name ON conversations (owner, name) WHERE name IS NOT NULL"

#: the statements that change version 1 into 2, 2 into 3 and so on; both SQLite and PostgreSQL take them
MIGRATIONS: tuple[tuple[str, ...], ...] = (
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
    (
        "ALTER TABLE conversations ADD COLUMN size BIGINT NOT NULL DEFAULT 0",
        "UPDATE conversations SET size = coalesce((SELECT sum(length(text) + 1024) FROM messages "
        "WHERE messages.conversation_id = conversations.id), 0)",
    ),
    (
        "ALTER TABLE conversations ADD COLUMN name TEXT",
        INDEX_OF_NAMES,
        "CREATE TABLE owners (owner TEXT NOT NULL, last_asked FLOAT NOT NULL, PRIMARY KEY (owner))",
    ),
    (
        "ALTER TABLE messages ADD COLUMN payloads TEXT",
        "ALTER TABLE messages ADD COLUMN echo TEXT",
    ),
    (
        "CREATE TABLE tokens (id TEXT NOT NULL, source TEXT NOT NULL, account TEXT NOT NULL, "
        "refresh_token TEXT NOT NULL, access_token TEXT, expires FLOAT, began FLOAT, dead TEXT, "
        "updated FLOAT NOT NULL, PRIMARY KEY (id))",
        "CREATE INDEX ix_tokens_updated ON tokens (updated)",
        "CREATE TABLE usage (owner TEXT NOT NULL, day TEXT NOT NULL, upstream TEXT NOT NULL, model TEXT NOT NULL, "
        "asks BIGINT NOT NULL, errors BIGINT NOT NULL, cancelled BIGINT NOT NULL, prompt_tokens BIGINT NOT NULL, "
        "completion_tokens BIGINT NOT NULL, estimated_tokens BIGINT NOT NULL, "
        "PRIMARY KEY (owner, day, upstream, model))",
    ),
    (
        "ALTER TABLE tokens ADD COLUMN workspace TEXT NOT NULL DEFAULT ''",
        "CREATE TABLE rests (account TEXT NOT NULL, model TEXT NOT NULL, token TEXT NOT NULL, code TEXT NOT NULL, "
        "since FLOAT NOT NULL, until FLOAT NOT NULL, PRIMARY KEY (account, model, token))",
        "CREATE TABLE revisions (name TEXT NOT NULL, number BIGINT NOT NULL, PRIMARY KEY (name))",
    ),
)
NEWEST_VERSION = len(MIGRATIONS) + 1


def bring_up_to_date(connection: Connection) -> None:
    """Create the tables, or migrate an older version's. Raises StoreFailed for a newer version's."""
    tables = inspect(connection).get_table_names()
    if "conversations" not in tables:
        metadata.create_all(connection)
        connection.execute(text(INDEX_OF_NAMES))
    else:
        current = _version(connection, tables)
        if current == NEWEST_VERSION:
            return
        _migrate(connection, current)
    connection.execute(delete(version))
    connection.execute(insert(version), {"version": NEWEST_VERSION})


def _version(connection: Connection, tables: list[str]) -> int:
    if "schema_version" not in tables:
        return 1
    current: int = connection.execute(select(version)).scalar_one()
    return current


def _migrate(connection: Connection, current: int) -> None:
    if current > NEWEST_VERSION:
        raise StoreFailed(
            f"The database is of a newer version ({current}) than this service ({NEWEST_VERSION}). "
            "Start the newer service, or name another DATABASE_URL."
        )
    for statements in MIGRATIONS[current - 1 :]:
        for statement in statements:
            connection.execute(text(statement))


def stored_version(connection: Connection) -> int | None:
    """The version of the tables in the database; None where there are none."""
    tables = inspect(connection).get_table_names()
    if "conversations" not in tables:
        return None
    return _version(connection, tables)
