"""Statements about entries, each a transaction of its own on the shard that has them.

No lock of an entry is held while anything else is waited for: held over a look at the owner, it
would close a circle over two servers, which neither of them sees. Only a transaction that hands a
key over holds one until it ends, maybe prepared: so nobody waits for a lock without limit.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from datapatterns.index_table.over_shards.net_changes import Entry, Texts
from datapatterns.index_table.over_shards.notes import listed, wanted_rows
from datapatterns.index_table.over_shards.owners import busy
from datapatterns.index_table.over_shards.sharded_index import (
    CLAIM,
    CLAIMED_AT,
    ShardedIndex,
    as_text,
    from_text,
)
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.maps.ownership import claim_buckets, owns_buckets
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sql.functions import library_function
from datapatterns.sql.metadata import declared_once
from datapatterns.transactions import committing, looking

LOCK_SECONDS = 2.0
"""How long to wait for others that want the same keys, unless somebody says otherwise."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """An entry as it stands in the index.

    Attributes:
        entry: Key and row.
        claim: Which claim it is; each has its own.
    """

    entry: Entry
    claim: UUID


@dataclass(frozen=True, slots=True)
class Wanted:
    """An entry that is to be made.

    Attributes:
        entry: Key and row.
        claim: A fresh one.
        included: The included columns, as texts.
    """

    entry: Entry
    claim: UUID
    included: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of one index, wherever they are.

    Attributes:
        access: The way to the shards.
        index: Which index.
        lock_seconds: How long to wait for whoever hands a key over.
    """

    access: ShardAccess
    index: ShardedIndex
    lock_seconds: float = LOCK_SECONDS

    def by_shard(self, keys: Iterable[Texts]) -> dict[str, list[Texts]]:
        """Return ``keys`` by the shards of their entries, sorted."""
        shard_map = self.access.router.map_of(self.index.group)
        return shard_map.placed(sorted({*keys}), self.index.place)

    @contextmanager
    def writing(self, shard: str, keys: Iterable[Texts]) -> Iterator[Connection]:
        """Give a connection in a transaction that keeps the buckets of ``keys`` on ``shard``.

        Raises:
            IndexBusyError: A key is being handed over, and that did not end in time.
            OutcomeUnknownError: The answer to its COMMIT was lost.
            ShardUnavailableError: The shard does not answer.
            StaleShardMapError: The entries have moved.
        """
        shard_map, buckets = self._buckets(keys)
        engine = self.access.companions.side_engines[shard]
        with self.access.asking(shard), engine.connect() as conn:
            fresh = conn.execution_options(isolation_level="READ COMMITTED")
            attempted = f"entries of index {self.index.name}"
            with busy(self.index.name), committing(fresh, attempted):
                claim = _claimed(shard_map, buckets, self.lock_seconds)
                fresh.execute(_claim_durably(self.access.schema), claim).close()
                yield fresh

    @contextmanager
    def reading(self, shard: str, keys: Iterable[Texts]) -> Iterator[Connection]:
        """Give a connection in a transaction to read the entries of ``keys`` on ``shard``.

        Raises: as `writing`; nothing is committed.
        """
        shard_map, buckets = self._buckets(keys)
        engine = self.access.companions.side_engines[shard]
        with self.access.asking(shard), engine.connect() as conn:
            fresh = conn.execution_options(isolation_level="READ COMMITTED")
            with looking(fresh):
                claim_buckets(fresh, shard_map, buckets, schema=self.access.schema)
                yield fresh

    @contextmanager
    def alone(self, shard: str) -> Iterator[Connection]:
        """Give a connection to ``shard`` on which each statement is a transaction of its own.

        It saves three of four round trips. Say ``alone=True`` to what is done on it: then the
        statement itself asks for the buckets, before it reads or writes a row.

        Raises:
            IndexBusyError: A key is being handed over, and that did not end in time.
            ShardUnavailableError: The shard does not answer.
            StaleShardMapError: The entries have moved.
        """
        engine = self.access.companions.side_engines[shard]
        with self.access.asking(shard), engine.connect() as conn, busy(self.index.name):
            yield conn.execution_options(isolation_level="AUTOCOMMIT")

    def _buckets(self, keys: Iterable[Texts]) -> tuple[ShardMap, frozenset[int]]:
        shard_map = self.access.router.map_of(self.index.group)
        return shard_map, shard_map.buckets_of(self.index.place(key) for key in keys)

    def found(
        self, conn: Connection, keys: Sequence[Texts], *, alone: bool = False, lock: bool = False
    ) -> list[Claimed]:
        """Return the entries of ``keys``; ``lock`` keeps them as they are until ``conn`` ends."""
        parameters = listed(keys, len(self.index.key_columns))
        statement = _found(self.index)
        if lock:
            statement = statement.order_by(*self.index.key_columns)
            statement = statement.with_for_update(of=self.index.table)
        if alone:
            shard_map, buckets = self._buckets(keys)
            statement = statement.where(owns_buckets(shard_map, buckets, schema=self.access.schema))
        rows = conn.execute(statement, parameters)
        return [Claimed(self.index.entry(row[:-1]), row[-1]) for row in rows]

    def inserted(
        self, conn: Connection, wanted: Sequence[Wanted], *, alone: bool = False
    ) -> dict[Entry, bool]:
        """Make entries, but none of a key that a unique index has; return those that were made.

        Of an index that is not unique an entry that was there gets the new claim; its value is
        False then, and its included columns stay.
        """
        index = self.index
        texts = [(*index.texts(each.entry), *each.included, str(each.claim)) for each in wanted]
        parameters = listed(texts, len(index.definition.columns) + 1)
        if alone:
            rows = conn.execute(
                _inserted_alone((index, self.access.schema)),
                parameters | self._claim(each.entry.key for each in wanted),
            )
        else:
            rows = conn.execute(_inserted(index), parameters)
        return {index.entry(row[:-1]): row[-1] for row in rows}

    def replaced(self, conn: Connection, seen: Claimed, by: Wanted, *, carry: bool) -> bool:
        """Let an entry of a unique index be another row's, if it is still as it was seen.

        Args:
            conn: In a transaction.
            seen: What is replaced.
            by: Of the same key.
            carry: Whether its included columns go along.
        """
        index, table = self.index, self.index.table
        texts = dict(zip(index.names, index.texts(by.entry), strict=True))
        values = {column.name: _value(texts[column.name], column) for column in index.row_columns}
        if carry:
            values |= {
                name: _value(text, table.c[name])
                for name, text in zip(_included(index), by.included, strict=True)
            }
        statement = (
            update(table)
            .where(*self._is(seen))
            .values({**values, CLAIM: by.claim, CLAIMED_AT: func.now()})
        )
        return conn.execute(statement).rowcount == 1

    def refreshed(self, conn: Connection, wanted: Sequence[tuple[Claimed, Wanted]]) -> set[Entry]:
        """Write included columns of entries that are still as they were seen; return which were."""
        index = self.index
        texts = [
            (*index.texts(seen.entry), *by.included, str(seen.claim), str(by.claim))
            for seen, by in wanted
        ]
        rows = conn.execute(_refreshed(index), listed(texts, len(index.definition.columns) + 2))
        return {index.entry(row) for row in rows}

    def removed(self, conn: Connection, seen: Sequence[Claimed], *, alone: bool = False) -> int:
        """Delete entries that are still as they were seen; return how many were."""
        texts = [(*each.entry.key, str(each.claim)) for each in seen]
        parameters: dict[str, Any] = listed(texts, len(self.index.key_columns) + 1)
        statement = _removed(self.index)
        if alone:
            statement = _removed_alone((self.index, self.access.schema))
            parameters |= self._claim(each.entry.key for each in seen)
        return conn.execute(statement, parameters).rowcount

    def _claim(self, keys: Iterable[Texts]) -> dict[str, Any]:
        return _claimed(*self._buckets(keys), self.lock_seconds)

    def _is(self, seen: Claimed) -> list[Any]:
        columns = self.index.key_columns
        same = [own == _value(text, own) for own, text in zip(columns, seen.entry.key, strict=True)]
        return [*same, self.index.table.c[CLAIM] == seen.claim]


def _claimed(shard_map: ShardMap, buckets: Iterable[int], lock_seconds: float) -> dict[str, Any]:
    wanted = sorted(buckets)
    generations = shard_map.generations_of(wanted)
    timeout = f"{max(1, round(lock_seconds * 1000))}ms"  # 0 would be for ever
    return {
        "group_id": shard_map.group_id,
        "buckets": wanted,
        "generations": generations,
        "lock_timeout": timeout,
    }


@lru_cache(maxsize=64)
def _claim_durably(schema: str) -> Select[bool]:
    """Keep buckets on a shard, and what is written on its disk when it is committed.

    And bound the waiting for entries that follows.
    """
    lists = [cast(bindparam(name), ARRAY(Integer)) for name in ("buckets", "generations")]
    group_id = bindparam("group_id", type_=Integer)
    claim = library_function(schema, "claim_entry_buckets", group_id, *lists, returns=Boolean())
    bounded = func.set_config("lock_timeout", bindparam("lock_timeout", type_=Text), true())
    return select(and_(claim, bounded.is_not(None)))


def remove_everywhere(access: ShardAccess, index: ShardedIndex, seen: Iterable[Claimed]) -> int:
    """Delete entries that are still as they were seen, on all shards; return how many were."""
    entries = Entries(access, index)
    by_key: Mapping[Texts, list[Claimed]] = _by_key(seen)
    count = 0
    for shard, keys in entries.by_shard(by_key).items():
        mine = [each for key in keys for each in by_key[key]]
        with entries.alone(shard) as conn:
            count += entries.removed(conn, mine, alone=True)
    return count


def _by_key(seen: Iterable[Claimed]) -> dict[Texts, list[Claimed]]:
    found: dict[Texts, list[Claimed]] = {}
    for each in seen:
        found.setdefault(each.entry.key, []).append(each)
    return found


def _included(index: ShardedIndex) -> list[str]:
    return [name for name in index.definition.columns if name not in index.names]


def _value(text: str | None, column: Any) -> Any:  # noqa: ANN401 -- a column, an expression of its type
    return from_text(cast(bindparam(None, text, Text), Text), column)


@declared_once
def _found(index: ShardedIndex) -> Any:  # noqa: ANN401 -- a Select
    wanted = wanted_rows(len(index.key_columns))
    same = [own == from_text(wanted.c[f"c{at}"], own) for at, own in enumerate(index.key_columns)]
    return select(*map(as_text, index.entry_columns), index.table.c[CLAIM]).select_from(
        wanted.join(index.table, and_(*same))
    )


@declared_once
def _inserted(index: ShardedIndex) -> Any:  # noqa: ANN401 -- an Insert
    return _inserting(index, true())


@declared_once
def _inserted_alone(of: tuple[ShardedIndex, str]) -> Any:  # noqa: ANN401 -- an Insert
    index, schema = of
    return _inserting(index, _claim_durably(schema).scalar_subquery())


def _inserting(index: ShardedIndex, condition: ColumnElement[bool]) -> Any:  # noqa: ANN401 -- an Insert
    names = [*index.definition.columns]
    table = index.table
    wanted = wanted_rows(len(names) + 1)
    order = [wanted.c[f"c{names.index(own.name)}"] for own in index.identity]
    source = select(
        *(from_text(wanted.c[f"c{at}"], table.c[name]) for at, name in enumerate(names)),
        from_text(wanted.c[f"c{len(names)}"], table.c[CLAIM]),
    )
    source = source.where(condition).order_by(*order)
    made = insert(table).from_select([*names, CLAIM], source)
    if index.definition.unique:
        made = made.on_conflict_do_nothing(index_elements=index.identity)
    else:
        changed = {CLAIM: made.excluded[CLAIM], CLAIMED_AT: func.now()}
        made = made.on_conflict_do_update(index_elements=index.identity, set_=changed)
    # Only what was inserted has never been updated or locked.
    return made.returning(*map(as_text, index.entry_columns), literal_column("xmax = 0"))


@declared_once
def _refreshed(index: ShardedIndex) -> Any:  # noqa: ANN401 -- an Update
    names, table = [*index.definition.columns], index.table
    wanted = wanted_rows(len(names) + 2)
    texts = {name: wanted.c[f"c{at}"] for at, name in enumerate(names)}
    seen, claim = wanted.c[f"c{len(names)}"], wanted.c[f"c{len(names) + 1}"]
    same = [table.c[name] == from_text(texts[name], table.c[name]) for name in index.names]
    carried = {name: from_text(texts[name], table.c[name]) for name in _included(index)}
    return (
        update(table)
        .where(*same, table.c[CLAIM] == from_text(seen, table.c[CLAIM]))
        .values({**carried, CLAIM: from_text(claim, table.c[CLAIM])})
        .returning(*map(as_text, index.entry_columns))
    )


@declared_once
def _removed(index: ShardedIndex) -> Any:  # noqa: ANN401 -- a Delete
    width = len(index.key_columns)
    gone = wanted_rows(width + 1)
    same = [own == from_text(gone.c[f"c{at}"], own) for at, own in enumerate(index.key_columns)]
    claim = index.table.c[CLAIM]
    return delete(index.table).where(*same, claim == from_text(gone.c[f"c{width}"], claim))


@declared_once
def _removed_alone(of: tuple[ShardedIndex, str]) -> Any:  # noqa: ANN401 -- a Delete
    # It names no column, so the server evaluates it once, and before it reads a row.
    return _removed(of[0]).where(_claim_durably(of[1]).scalar_subquery())
