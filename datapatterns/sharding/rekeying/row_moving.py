"""Give a row another shard key: deleted here and inserted there, in one transaction."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import Connection, Table, Text, cast, select

from datapatterns.errors import (
    RowHasDependantsError,
    RowMissingError,
    ShardedTableError,
    UnroutableStatementError,
)
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.spoiling import refuse_commit
from datapatterns.sharding.broadcasting.images import Image, TableShape, has_key, shape_of
from datapatterns.sharding.definition import ShardKey
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.references.changes import Changes
from datapatterns.sharding.references.moved_rows import note_moved
from datapatterns.sharding.rekeying.references import (
    Reference,
    references_to,
    tables_by_oid,
)
from datapatterns.sharding.rekeying.rows import (
    delete_rows,
    insert_rows,
    is_referred_to,
    locked_rows,
)
from datapatterns.sharding.strategies.strategy import Key

ROWS_MAX = 10_000
"""How many rows may move at once; more are better moved as a bucket."""

Texts: TypeAlias = tuple[str, ...]
"""A shard key as the server writes it: a text for each of its columns."""

ConnectionFor: TypeAlias = Callable[[str, ShardMap, int], Connection]
"""Gives the connection to a shard, once a bucket has been claimed there."""


@dataclass(frozen=True, slots=True)
class RowMove:
    """What was moved from one shard key to another.

    Attributes:
        source: The shard that the row was on.
        target: The shard that it is on now; may be the same.
        rows: How many rows of each table, with those that refer to the row.
    """

    source: str
    target: str
    rows: Mapping[str, int]


@dataclass(slots=True)
class _Found:
    """A table's rows that are to move, in the order in which they were found."""

    shape: TableShape
    images: dict[tuple[str | None, ...], Image] = field(default_factory=dict)


@dataclass(slots=True)
class RowMoving:
    """Moves a row, and what refers to it.

    Attributes:
        access: The way to the shards.
        connection_for: The transaction that it happens in.
        with_children: Whether rows that refer to it by foreign keys move along.
        own_tables: Tables that hold parts of the row itself: those of a class that inherits.
        check: Looks at what that does to references, in that transaction.
    """

    access: ShardAccess
    connection_for: ConnectionFor
    with_children: bool
    own_tables: Collection[Table] = ()
    check: Callable[[Changes], object] = lambda _: None
    keys: dict[Table, list[tuple[str | None, ...]]] = field(default_factory=dict)
    """Afterwards: the primary keys that have gone, as text."""

    def move(self, table: Table, key: Mapping[str, Any], new_key: Key) -> RowMove:
        """Move one row.

        Args:
            table: Its table.
            key: Its primary key, by columns.
            new_key: The shard key that it gets.

        Raises:
            ParentInUseError: Rows of other shards refer to it.
            ParentMissingError: What a row refers to under its new key is not there.
            RowHasDependantsError: Others refer to it, and are not to move along.
            RowMissingError: There is no such row.
        """
        shard_key = self._declared(table)
        group = shard_key.group
        columns = shard_key.checked_columns(table)
        old_key = group.stored_key(shard_key.value_in(key), *columns)
        new_key = group.stored_key(new_key, *columns)
        shard_map = self.access.router.map_of(group)
        buckets = shard_map.strategy.bucket(old_key), shard_map.strategy.bucket(new_key)
        source, target = shard_map.shard_of(old_key), shard_map.shard_of(new_key)
        if old_key == new_key:
            return RowMove(source, target, {})
        leaving = self.connection_for(source, shard_map, buckets[0])
        entering = self.connection_for(target, shard_map, buckets[1])
        with self.access.asking(source):
            found = self._collect(leaving, table, shard_key, key, as_texts(old_key))
        with self.access.asking(target):
            for each, rows in found.items():
                if shape_of(entering, each).columns != rows.shape.columns:
                    raise ShardedTableError(
                        each.name, f"its columns differ on {source} and {target}; migrate both"
                    )
        try:
            with self.access.asking(source):
                self._delete(leaving, found)
            with self.access.asking(target):
                self._insert(entering, found, as_texts(new_key))
                changes = self._changes(entering, found, as_texts(new_key))
            self.check(changes)
        except BaseException:
            refuse_commit(leaving)
            raise
        self.keys = {each: list(rows.images) for each, rows in found.items()}
        return RowMove(
            source, target, {t.name: len(rows.images) for t, rows in found.items() if rows.images}
        )

    def _delete(self, conn: Connection, found: dict[Table, _Found]) -> None:
        for table in reversed(_in_order(found)):
            # Those first that were found last: they refer to what was found before.
            primaries = reversed(list(found[table].images))
            delete_rows(conn, table, [_named(table, primary) for primary in primaries])

    def _insert(self, conn: Connection, found: dict[Table, _Found], new_key: Texts) -> None:
        for table in _in_order(each for each, rows in found.items() if rows.images):
            images = self._rekeyed(found[table], self._declared(table), new_key)
            insert_rows(conn, table, found[table].shape, images)

    def _changes(self, conn: Connection, found: dict[Table, _Found], new_key: Texts) -> Changes:
        changes, references = Changes(), self.access.references
        for table, rows in found.items() if references else ():
            before = list(rows.images.values())
            after = self._rekeyed(rows, self._declared(table), new_key)
            note_moved(changes, conn, references, table, rows.shape.names, before, after)
        return changes

    def _declared(self, table: Table) -> ShardKey:
        found = self.access.placements.shard_key(table)
        if found is None:
            raise UnroutableStatementError(
                f"table {table.name!r} has no shard key", "rows of sharded tables can be moved"
            )
        return found

    # What moves ----------------------------------------------------------------------------

    def _collect(
        self,
        conn: Connection,
        table: Table,
        shard_key: ShardKey,
        key: Mapping[str, Any],
        old_key: Texts,
    ) -> dict[Table, _Found]:
        """Lock the row and all that refer to it; nobody can add any that do, from then on."""
        known = tables_by_oid(conn, self.access.placements.tables_of(shard_key.group))
        found: dict[Table, _Found] = {}
        typed = tuple(key[column.name] for column in table.primary_key.columns)
        row = conn.execute(
            select(*(cast(column, Text) for column in table.primary_key.columns))
            .select_from(table)
            .where(has_key(table, [typed]))
        ).one_or_none()
        if row is None:
            raise RowMissingError(table.name)
        waiting = self._take(conn, table, _named(table, tuple(row)), found, old_key)
        if not waiting:  # it went while its lock was waited for
            raise RowMissingError(table.name)
        dependants: Counter[str] = Counter()
        while waiting:
            of, image = waiting.pop()
            for reference in references_to(conn, of, known):
                below = self._below(conn, of, found[of].shape, image, reference, found, old_key)
                if below and reference.table not in self.own_tables:
                    dependants[reference.child] += len(below)
                waiting += below
            if dependants and not self.with_children:
                raise RowHasDependantsError(
                    table.name, dependants, "move them along with with_children=True"
                )
        return found

    def _below(  # noqa: PLR0913, PLR0917 -- a row, and how another table refers to it
        self,
        conn: Connection,
        of: Table,
        shape: TableShape,
        image: Image,
        reference: Reference,
        found: dict[Table, _Found],
        old_key: Texts,
    ) -> list[tuple[Table, Image]]:
        values = dict(zip(shape.names, image, strict=True))
        wanted: dict[str, str] = {}
        for column, referred in zip(reference.columns, reference.referred, strict=True):
            if referred not in values:
                raise ShardedTableError(
                    of.name,
                    f"{reference.child} refers to its generated column {referred}, which would be"
                    " another one; let it refer to others",
                )
            if (value := values[referred]) is None:
                return []  # NULL refers to nothing
            wanted[column] = value
        if reference.table is None:
            if is_referred_to(conn, reference, wanted):
                raise RowHasDependantsError(
                    of.name,
                    [reference.child],
                    f"{reference.child} is none of group {self._declared(of).group.name!r}; change"
                    " what it refers to before",
                )
            return []
        return self._take(conn, reference.table, wanted, found, old_key)

    def _take(
        self,
        conn: Connection,
        of: Table,
        values: Mapping[str, Any],
        found: dict[Table, _Found],
        old_key: Texts,
    ) -> list[tuple[Table, Image]]:
        """Lock rows that are not taken yet."""
        if of not in found:
            found[of] = _Found(shape_of(conn, of))
        rows, shard_key = found[of], self._declared(of)
        new = []
        for image in locked_rows(conn, of, rows.shape, values):
            primary = _primary(of, rows.shape, image)
            values_of = dict(zip(rows.shape.names, image, strict=True))
            if tuple(values_of[name] for name in shard_key.columns) != old_key:
                raise ShardedTableError(
                    of.name,
                    f"a row refers to one of another {shard_key.named}, and so cannot move with it",
                )
            if primary not in rows.images:
                rows.images[primary] = image
                new.append((of, image))
        if sum(len(each.images) for each in found.values()) > ROWS_MAX:
            raise RowHasDependantsError(
                of.name,
                [each.name for each in found],
                f"there are more than {ROWS_MAX} rows of them; copy them in parts",
            )
        return new

    def _rekeyed(self, rows: _Found, shard_key: ShardKey, new_key: Texts) -> list[Image]:
        new = dict(zip(shard_key.columns, new_key, strict=True))
        return [
            tuple(new.get(name, value) for name, value in zip(rows.shape.names, image, strict=True))
            for image in rows.images.values()
        ]


def as_texts(key: Key) -> Texts:
    """Return a shard key as the server writes it."""
    return tuple(map(str, key)) if isinstance(key, tuple) else (str(key),)


def _named(table: Table, primary: Iterable[str | None]) -> dict[str, str]:
    values = [value for value in primary if value is not None]  # none of a primary key is NULL
    return dict(zip((c.name for c in table.primary_key.columns), values, strict=True))


def _primary(table: Table, shape: TableShape, image: Image) -> tuple[str | None, ...]:
    values = dict(zip(shape.names, image, strict=True))
    return tuple(values[column.name] for column in table.primary_key.columns)


def _in_order(tables: Iterable[Table]) -> list[Table]:
    """Order tables so that those come first that others refer to."""
    found = list(tables)
    return [table for table in found[0].metadata.sorted_tables if table in found]
