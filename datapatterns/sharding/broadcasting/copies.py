"""Which shards hold copies of broadcast tables, and the lock that lets one writer at a time in."""

from collections.abc import Mapping
from hashlib import sha256
from threading import Lock

from sqlalchemy import Connection, Engine, Table, func, select

from datapatterns.errors import (
    CopiesDifferError,
    IsolationLevelError,
    SettingsError,
    ShardListChangedError,
)
from datapatterns.sharding.broadcasting.images import TableShape, shape_of
from datapatterns.sharding.schema import sharding_tables
from datapatterns.transactions import fresh_reads, reading

LOCK_CLASS = 741_999_999
"""The first half of the advisory locks of broadcast tables, beside those of buckets' fences."""


class CopyList:
    """The shards that hold copies, as the control database lists them.

    Args:
        control: Where they are listed.
        engines: The shards that this process can reach.
        schema: Where the library's tables live.
    """

    def __init__(self, control: Engine, engines: Mapping[str, Engine], *, schema: str) -> None:
        self._control = control
        self._engines = engines
        self._schema = schema
        self._lock = Lock()
        self._known: tuple[str, ...] | None = None

    def shards(self) -> tuple[str, ...]:
        """Return the shards in the order in which they are locked; they may be others by then."""
        # Not under the lock: on asyncio another task of the thread would wait for it for ever.
        known = self._known
        if known is None:
            known = self._known = self._listed()
        return known

    def check(self, locked: tuple[str, ...]) -> None:
        """Read the list again, once the first shard is locked: from now on it stays as it is.

        Raises:
            ShardListChangedError: It has changed.
            SettingsError: It has a shard that this process knows no way to.
        """
        found = self._listed()
        if found != locked:
            with self._lock:
                self._known = found
            raise ShardListChangedError(found)

    def _listed(self) -> tuple[str, ...]:
        listed = sharding_tables(self._schema).shard.c.shard_id
        with fresh_reads(self._control) as conn, reading(conn):
            found = tuple(sorted(conn.scalars(select(listed))))
        if missing := set(found) - self._engines.keys():
            raise SettingsError(
                "shards",
                f"{', '.join(sorted(missing))} hold copies of broadcast tables, too; configure a"
                " connection to each, then repeat the transaction",
            )
        return found


def lock_copy(conn: Connection, table: Table) -> TableShape:
    """Keep other writers away from a shard's copy until the caller's transaction ends.

    Also once it is prepared: the next writer must not miss rows that are not visible yet.

    Raises:
        IsolationLevelError: A snapshot may have been taken before the lock was had.
    """
    isolation, _ = conn.execute(
        select(
            func.current_setting("transaction_isolation"),
            func.pg_advisory_xact_lock(LOCK_CLASS, lock_number(table)),
        )
    ).one()
    if isolation != "read committed":
        raise IsolationLevelError(found=isolation, needed="read committed")
    return shape_of(conn, table)


def lock_number(table: Table) -> int:
    """Return the second half of a table's advisory lock; two tables may share one.

    By the name alone: another process may rely on the search path for the schema.
    """
    digest = sha256(table.name.encode()).digest()
    return int.from_bytes(digest[:4], "big", signed=True)


def check_shape(table: Table, shard: str, shape: TableShape, first: TableShape) -> None:
    """Refuse a copy that has other columns than that of the first shard.

    Raises:
        CopiesDifferError: It has: a migration has not been everywhere yet.
    """
    if shape.columns != first.columns:
        names = sorted({name for name, _ in {*shape.columns} ^ {*first.columns}})
        raise CopiesDifferError(
            table.name, shard, f"columns {', '.join(names)} are not as on the first shard"
        )
