"""Look-ups of an index table, in one database or over shards."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Row
from sqlalchemy.orm import Session

from datapatterns.errors import IndexPlaceError
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import Covered, IndexEntry, Match
from datapatterns.index_table.looking_up import (
    Miss,
    check_limit,
    lookup_rows,
    lookup_rows_by_keys,
)
from datapatterns.index_table.over_shards.looking_up import Lookup, keys_over_shards
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex, sharded_index
from datapatterns.index_table.ranging import KeyRange, read_covered, read_entries, read_matches

T = TypeVar("T")


class Lookups:
    """What finds rows; every method works in the caller's transaction and never commits."""

    definition: IndexDefinition

    def lookup(
        self,
        conn: Connection | Session,
        *key: Any,  # noqa: ANN401 -- values of the application's columns
        limit: int = 1000,
        after: Sequence[Any] | None = None,
        miss: Miss = "refuse",
    ) -> list[Row[Any]]:
        """Return the rows of the base table with this key, by ascending primary key.

        Args:
            conn: A connection in a transaction; a session over the shards for an index over them.
            key: A value for each column of the key.
            limit: At most how many rows.
            after: Primary key of the last row of the page before.
            miss: ``scan`` reads the base table while the index is being built.

        Raises:
            IndexNotReadyError: It is being built, and ``miss`` is ``refuse``.
            IndexDetachedError: Its triggers don't fire for every writer of its table.
            IndexMissingError: It was never created. The transaction accepts nothing more.
            IndexChangedError: It was built from another definition. The transaction may
                accept nothing more.
        """
        if isinstance(conn, Session):
            check_limit(limit)
            return Lookup(conn, self._over_shards()).page(key, limit=limit, after=after)
        self._refuse_over_shards()
        return lookup_rows(conn, self.definition, key, limit=limit, after=after, miss=miss)

    def objects(
        self,
        session: Session,
        entity: type[T],
        *key: Any,  # noqa: ANN401 -- values of the application's columns
        limit: int = 1000,
        after: Sequence[Any] | None = None,
    ) -> list[T]:
        """Return the objects with this key, by ascending primary key, of an index over shards.

        Args:
            session: One over the shards; it has the objects from then on.
            entity: A class that is mapped to the base table.
            key: A value for each column of the key.
            limit: At most how many.
            after: Primary key of the last object of the page before.

        Raises:
            IndexPlaceError: The index is kept in each database.
            ShardIndexNotReadyError: It is not built yet.
        """
        check_limit(limit)
        lookup = Lookup(session, self._over_shards(), entity)
        return lookup.page(key, limit=limit, after=after)

    def lookup_many(
        self,
        conn: Connection | Session,
        keys: Iterable[Any],
        *,
        limit_per_key: int = 1000,
        miss: Miss = "refuse",
    ) -> dict[Any, list[Row[Any]]]:
        """Return the rows for each of ``keys``, in one statement; none is an empty list.

        Over shards it is one for each shard that has entries, all at once, then one for each that
        has rows.

        Args:
            conn: A connection in a transaction; a session over the shards for an index over them.
            keys: At most 1,000; tuples if the key has several columns.
            limit_per_key: At most how many rows for each.
            miss: ``scan`` reads the base table while the index is being built.

        Raises:
            IndexNotReadyError: It is being built, and ``miss`` is ``refuse``.
        """
        asked = list(dict.fromkeys(keys))
        whole = [tuple(key) if len(self.definition.key) > 1 else (key,) for key in asked]
        if isinstance(conn, Session):
            check_limit(limit_per_key)
            lookup = Lookup(conn, self._over_shards())
            return dict(zip(asked, lookup.many(whole, limit_per_key=limit_per_key), strict=True))
        self._refuse_over_shards()
        found = lookup_rows_by_keys(
            conn, self.definition, whole, limit_per_key=limit_per_key, miss=miss
        )
        return dict(zip(asked, found, strict=True))

    def lookup_range(
        self,
        conn: Connection,
        *prefix: Any,  # noqa: ANN401 -- values of the application's columns
        low: Any | None = None,  # noqa: ANN401
        high: Any | None = None,  # noqa: ANN401
        limit: int = 1000,
        after: IndexEntry | None = None,
    ) -> list[Match[Row[Any]]]:
        """Return rows in the order of the index, each with its index row.

        Args:
            conn: A connection in a transaction.
            prefix: Values of the first columns of the key; none means any.
            low: The least value of the next column.
            high: The value of the next column to stop before.
            limit: At most how many rows.
            after: ``entry`` of the last match of the page before.

        Raises:
            IndexNotReadyError: It is being built.
        """
        self._refuse_over_shards()
        wanted = KeyRange(prefix=prefix, low=low, high=high, after=after, limit=limit)
        return read_matches(conn, self.definition, wanted)

    def keys(
        self,
        conn: Connection | Session,
        *prefix: Any,  # noqa: ANN401 -- values of the application's columns
        low: Any | None = None,  # noqa: ANN401
        high: Any | None = None,  # noqa: ANN401
        limit: int = 1000,
        after: IndexEntry | None = None,
    ) -> list[IndexEntry]:
        """Return index rows with their included columns, in the order of the index.

        The base table isn't touched, unless the index is kept behind its writers: then each is
        compared with its row, and `covering` is what doesn't do that. Takes the same arguments as
        `lookup_range`; ``after`` is the last entry of the page before. Over shards it takes a
        whole key, and an entry may lead to no row.
        """
        if isinstance(conn, Session):
            if low is not None or high is not None:
                raise ValueError(
                    "an index over shards is spread by its key, so a range is nowhere in order;"
                    " leave out low and high, or order a select() with scatter=True"
                )
            place = None if after is None else after.primary_key
            return keys_over_shards(conn, self._over_shards(), prefix, limit=limit, after=place)
        self._refuse_over_shards()
        wanted = KeyRange(prefix=prefix, low=low, high=high, after=after, limit=limit)
        return read_entries(conn, self.definition, wanted)

    def covering(
        self,
        conn: Connection,
        *prefix: Any,  # noqa: ANN401 -- values of the application's columns
        low: Any | None = None,  # noqa: ANN401
        high: Any | None = None,  # noqa: ANN401
        limit: int = 1000,
        after: IndexEntry | None = None,
    ) -> Covered:
        """Return index rows without touching the base table, and how old that is.

        Takes the same arguments as `keys`. Rows that are not what their table says any more may
        be among them; ``behind_seconds`` is 0 for an index that its writers keep.
        """
        wanted = KeyRange(prefix=prefix, low=low, high=high, after=after, limit=limit)
        return read_covered(conn, self.definition, wanted)

    def _over_shards(self) -> ShardedIndex:
        if self.definition.mode != "reserve":
            raise IndexPlaceError(
                self.definition.name,
                mode=self.definition.mode,
                advice="ask one shard, with a connection to it, or declare it with mode='reserve'",
            )
        return sharded_index(self.definition)

    def _refuse_over_shards(self) -> None:
        if self.definition.mode == "reserve":
            raise IndexPlaceError(
                self.definition.name,
                mode=self.definition.mode,
                advice="it has no place in one database: look rows up with a session over the"
                " shards, and leave the rest to ShardIndexes",
            )
