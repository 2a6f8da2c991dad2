"""The tables of the shard map, and of what each shard knows about itself."""

from dataclasses import dataclass

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Integer,
    LargeBinary,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, OID

from datapatterns.change_log.schema import Xid8
from datapatterns.sql.metadata import declared_once, library_metadata

UNUSED = 0
"""The epoch of a map that not all shards have been told of; routers take it for missing."""


@dataclass(frozen=True, slots=True)
class ShardingTables:
    """The tables of one schema; the first five matter in the control database only.

    Attributes:
        shard: The shards that exist.
        shard_group: The entity groups, with what they were declared as.
        bucket_map: Which shard owns which bucket; what routers load.
        bucket_move: Which bucket moves, or has moved, from where to where.
        id_worker: Who makes ids with which number, and up to which millisecond.
        this_shard: On a shard: who it is.
        bucket: On a shard: what it owns. The truth, should the map disagree.
        dirty_key: On a shard: rows that changed in a bucket while that moves away.
        transaction_decision: On a shard: what became of transactions over several shards.
        range_map: Where ranges of keys begin, and their buckets.
        key_map: Keys that have a bucket by name: pinned, listed or assigned.
        map_change: The change of a group's map that is under way.
        lease_epoch: What the leases of all moves are numbered by.
    """

    shard: Table
    shard_group: Table
    bucket_map: Table
    bucket_move: Table
    id_worker: Table
    this_shard: Table
    bucket: Table
    dirty_key: Table
    transaction_decision: Table
    range_map: Table
    key_map: Table
    map_change: Table
    lease_epoch: Sequence


@declared_once
def sharding_tables(schema: str, /) -> ShardingTables:
    """Return the tables in ``schema``."""
    metadata = library_metadata(schema)
    shard_name = "shard_id ~ '^[a-z0-9_]{1,30}$'"
    shard = Table(
        "shard",
        metadata,
        Column("shard_id", Text, primary_key=True),
        Column("state", Text, nullable=False, server_default="active"),
        Column("weight", Float(53), nullable=False, server_default="1"),
        CheckConstraint(shard_name, name="shard_id"),
        CheckConstraint("state IN ('active', 'draining', 'readonly')", name="state"),
        CheckConstraint("weight > 0", name="weight"),
    )
    shard_group = Table(
        "shard_group",
        metadata,
        Column("group_id", Integer, Identity(always=True), primary_key=True),
        Column("name", Text, nullable=False),
        Column("strategy", Text, nullable=False),
        Column("key_type", Text, nullable=False),
        Column("buckets", Integer, nullable=False),
        Column("hash_function", Text),
        Column("fingerprint", Text, nullable=False),
        Column("epoch", BigInteger, nullable=False, server_default="1"),
        UniqueConstraint("name"),
        CheckConstraint(
            "strategy IN ('hash', 'modulo', 'range', 'list', 'directory', 'composite')",
            name="strategy",
        ),
        CheckConstraint(
            "key_type ~ '^(bigint|text|uuid)(,(bigint|text|uuid))?$'"
            " AND (strategy = 'composite') = (key_type LIKE '%,%')",
            name="key_type",
        ),
        CheckConstraint(
            "buckets > 0 AND (strategy <> 'hash' OR buckets & (buckets - 1) = 0)", name="buckets"
        ),
        CheckConstraint("(strategy = 'hash') = (hash_function IS NOT NULL)", name="hash_function"),
    )
    bucket_map = Table(
        "bucket_map",
        metadata,
        Column("group_id", Integer, ForeignKey(shard_group.c.group_id), primary_key=True),
        Column("bucket", Integer, primary_key=True, autoincrement=False),
        Column("shard_id", Text, ForeignKey(shard.c.shard_id), nullable=False),
        Column("epoch", BigInteger, nullable=False, server_default="1"),
        Column("parent", Integer),
        Column("merged_into", Integer),
        Column("assigned_to", ARRAY(Integer), nullable=False, server_default=text("'{}'")),
        Column("generation", Integer, nullable=False, server_default="0"),
        Column("changing", Boolean, nullable=False, server_default="false"),
        ForeignKeyConstraint(["group_id", "parent"], _of_map(schema)),
        ForeignKeyConstraint(["group_id", "merged_into"], _of_map(schema)),
        CheckConstraint("bucket >= 0", name="bucket"),
        CheckConstraint("parent < bucket", name="parent"),
        CheckConstraint("merged_into <> bucket", name="merged_into"),
        CheckConstraint("generation >= 0", name="generation"),
    )
    return ShardingTables(
        shard,
        shard_group,
        bucket_map,
        _bucket_move(schema),
        _id_worker(schema),
        _this_shard(schema),
        _bucket(schema),
        _dirty_key(schema),
        _transaction_decision(schema),
        _range_map(schema),
        _key_map(schema),
        _map_change(schema),
        Sequence("lease_epoch", metadata=metadata, schema=schema, data_type=BigInteger),
    )


def _transaction_decision(schema: str) -> Table:
    return Table(
        "transaction_decision",
        library_metadata(schema),
        Column("transaction_id", Uuid, primary_key=True),
        Column("outcome", Text, nullable=False),
        Column("primary_xid", Xid8, nullable=False),
        Column("branches", ARRAY(Text), nullable=False),
        Column(
            "decided_at",
            DateTime(timezone=True),
            nullable=False,
            server_default=func.clock_timestamp(),
        ),
        CheckConstraint("outcome IN ('commit', 'abort')", name="outcome"),
    )


def _id_worker(schema: str) -> Table:
    return Table(
        "id_worker",
        library_metadata(schema),
        Column("worker", Integer, primary_key=True, autoincrement=False),
        Column("holder", Uuid),
        Column("lease_until", DateTime(timezone=True)),
        Column("ms_ceiling", BigInteger, nullable=False, server_default="0"),
        CheckConstraint("worker BETWEEN 0 AND 63", name="worker"),
        CheckConstraint("(holder IS NULL) = (lease_until IS NULL)", name="lease_until"),
        CheckConstraint("ms_ceiling >= 0", name="ms_ceiling"),
    )


def _this_shard(schema: str) -> Table:
    return Table(
        "this_shard",
        library_metadata(schema),
        Column("only_row", Boolean, primary_key=True, server_default="true"),
        Column("shard_id", Text, nullable=False),
        CheckConstraint("only_row", name="only_row"),
        CheckConstraint("shard_id ~ '^[a-z0-9_]{1,30}$'", name="shard_id"),
    )


def _bucket(schema: str) -> Table:
    return Table(
        "bucket",
        library_metadata(schema),
        Column("group_id", Integer, primary_key=True, autoincrement=False),
        Column("bucket", Integer, primary_key=True, autoincrement=False),
        Column("state", Text, nullable=False),
        Column("epoch", BigInteger, nullable=False),
        Column("generation", Integer, nullable=False, server_default="0"),
        Column("settled", Boolean, nullable=False, server_default="true"),
        Column("lease_epoch", BigInteger, nullable=False, server_default="0"),
        CheckConstraint("bucket >= 0", name="bucket"),
        CheckConstraint("generation >= 0", name="generation"),
        CheckConstraint("state IN ('owned', 'incoming', 'moved', 'cleaned')", name="state"),
    )


def _of_map(schema: str) -> list[str]:
    return [f"{schema}.bucket_map.group_id", f"{schema}.bucket_map.bucket"]


def _range_map(schema: str) -> Table:
    return Table(
        "range_map",
        library_metadata(schema),
        Column("group_id", Integer, primary_key=True, autoincrement=False),
        Column("lower_bound", LargeBinary, primary_key=True),
        Column("label", Text, nullable=False),
        Column("bucket", Integer, nullable=False),
        UniqueConstraint("group_id", "bucket"),
        ForeignKeyConstraint(["group_id", "bucket"], _of_map(schema)),
    )


def _key_map(schema: str) -> Table:
    return Table(
        "key_map",
        library_metadata(schema),
        Column("group_id", Integer, primary_key=True, autoincrement=False),
        Column("kind", Text, primary_key=True),
        Column("key", LargeBinary, primary_key=True),
        Column("label", Text, nullable=False),
        Column("bucket", Integer, nullable=False),
        ForeignKeyConstraint(["group_id", "bucket"], _of_map(schema)),
        CheckConstraint("kind IN ('pin', 'entry')", name="kind"),
    )


def _map_change(schema: str) -> Table:
    now = func.clock_timestamp()
    return Table(
        "map_change",
        library_metadata(schema),
        Column("group_id", Integer, ForeignKey(f"{schema}.shard_group.group_id"), primary_key=True),
        Column("kind", Text, nullable=False),
        Column("key", LargeBinary, nullable=False),
        Column("label", Text, nullable=False),
        Column("losing", Integer),
        Column("gaining", Integer, nullable=False),
        Column("shard_id", Text, nullable=False),
        Column("generation", Integer, nullable=False),
        Column("state", Text, nullable=False, server_default="begun"),
        Column("begun_at", DateTime(timezone=True), nullable=False, server_default=now),
        CheckConstraint("kind IN ('split', 'merge', 'pin', 'unpin', 'assign')", name="kind"),
        CheckConstraint("losing <> gaining", name="losing"),
        CheckConstraint("state IN ('begun', 'applied')", name="state"),
    )


@declared_once
def shard_migration_table(schema: str, /) -> Table:
    """Return the table, in the control database, of how far migrations of all shards have come."""
    return Table(
        "shard_migration",
        library_metadata(schema),
        Column("run_id", Uuid, primary_key=True),
        Column("shard_id", Text, primary_key=True),
        Column("direction", Text, nullable=False),
        Column("revision", Text, nullable=False),
        Column("state", Text, nullable=False, server_default="pending"),
        Column("attempts", Integer, nullable=False, server_default="0"),
        Column("heads", ARRAY(Text), nullable=False, server_default="{}"),
        Column("fingerprint", Text),
        Column("error", Text),
        Column(
            "begun_at",
            DateTime(timezone=True),
            nullable=False,
            server_default=func.clock_timestamp(),
        ),
        Column("started_at", DateTime(timezone=True)),
        Column("finished_at", DateTime(timezone=True)),
        CheckConstraint("shard_id ~ '^[a-z0-9_]{1,30}$'", name="shard_id"),
        CheckConstraint("direction IN ('upgrade', 'downgrade')", name="direction"),
        CheckConstraint(
            "state IN ('pending', 'running', 'done', 'failed', 'blocked', 'unavailable')",
            name="state",
        ),
    )


@dataclass(frozen=True, slots=True)
class LoadTables:
    """What processes have counted, by the minute; in the control database.

    Attributes:
        bucket_load: Statements for each bucket.
        hot_key: Keys that were asked for most, as far as sketches held them.
        hot_key_total: What all sketches saw, and what they may have missed of a key.
    """

    bucket_load: Table
    hot_key: Table
    hot_key_total: Table


@declared_once
def load_tables(schema: str, /) -> LoadTables:
    """Return the tables in ``schema``."""
    metadata = library_metadata(schema)
    return LoadTables(
        Table(
            "bucket_load",
            metadata,
            Column("minute", DateTime(timezone=True), primary_key=True),
            Column("group_id", Integer, primary_key=True, autoincrement=False),
            Column("bucket", Integer, primary_key=True, autoincrement=False),
            Column("reads", BigInteger, nullable=False),
            Column("writes", BigInteger, nullable=False),
            Column("busy_us", BigInteger, nullable=False),
        ),
        Table(
            "hot_key",
            metadata,
            Column("minute", DateTime(timezone=True), primary_key=True),
            Column("group_id", Integer, primary_key=True, autoincrement=False),
            Column("key", Text, primary_key=True),
            Column("hits", BigInteger, nullable=False),
            Column("max_error", BigInteger, nullable=False),
            Column("floor", BigInteger, nullable=False),
            Column("busy_us", BigInteger, nullable=False),
        ),
        Table(
            "hot_key_total",
            metadata,
            Column("minute", DateTime(timezone=True), primary_key=True),
            Column("group_id", Integer, primary_key=True, autoincrement=False),
            Column("hits", BigInteger, nullable=False),
            Column("floor", BigInteger, nullable=False),
        ),
    )


def _bucket_move(schema: str) -> Table:
    metadata = library_metadata(schema)
    now = func.clock_timestamp()
    return Table(
        "bucket_move",
        metadata,
        Column("move_id", Uuid, primary_key=True, server_default=func.gen_random_uuid()),
        Column("group_id", Integer, nullable=False),
        Column("bucket", Integer, nullable=False),
        Column("source", Text, ForeignKey(f"{schema}.shard.shard_id"), nullable=False),
        Column("target", Text, ForeignKey(f"{schema}.shard.shard_id"), nullable=False),
        Column("state", Text, nullable=False, server_default="planned"),
        Column("worker", Text),
        Column("lease_until", DateTime(timezone=True)),
        Column("lease_epoch", BigInteger, nullable=False, server_default="0"),
        Column("copied_rows", BigInteger),
        Column("copied_bytes", BigInteger),
        Column("pause_ms", Float(53)),
        Column("error", Text),
        Column("planned_at", DateTime(timezone=True), nullable=False, server_default=now),
        Column("updated_at", DateTime(timezone=True), nullable=False, server_default=now),
        ForeignKeyConstraint(
            ["group_id", "bucket"],
            [f"{schema}.bucket_map.group_id", f"{schema}.bucket_map.bucket"],
        ),
        CheckConstraint("source <> target", name="shards"),
        CheckConstraint(
            "state IN ('planned', 'capturing', 'copying', 'catching_up', 'cut', 'handed_over',"
            " 'cleaned', 'aborted')",
            name="state",
        ),
    )


def _dirty_key(schema: str) -> Table:
    return Table(
        "dirty_key",
        library_metadata(schema),
        Column("seq", BigInteger, Identity(always=True), primary_key=True),
        Column("group_id", Integer, nullable=False),
        Column("bucket", Integer, nullable=False),
        Column("table_oid", OID, nullable=False),
        Column("pk", JSONB, nullable=False),
    )
