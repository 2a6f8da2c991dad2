"""Find the rows of statements through an index over shards: entries of many keys at once."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Select,
    String,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    column,
    func,
    select,
    true,
    tuple_,
)

from datapatterns.errors import StaleShardMapError
from datapatterns.index_table.definition import fingerprint
from datapatterns.index_table.over_shards.catching_up import end_decided
from datapatterns.index_table.over_shards.matching import Matched
from datapatterns.index_table.over_shards.notes import listed, noted_rows, wanted_rows
from datapatterns.index_table.over_shards.sharded_index import CLAIM, ShardedIndex, from_text
from datapatterns.index_table.schema import index_tables
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.companions import SessionOverShards
from datapatterns.sharding.finding import FoundRows, OnIndexDown
from datapatterns.sharding.maps.ownership import owns_buckets
from datapatterns.sharding.reaching.asking import ask_connected
from datapatterns.sql.metadata import declared_once

Row = tuple[Any, ...]
Key = tuple[Any, ...]

_LOOKS_MAX: Final = 5
"""How often entries are looked for that move meanwhile."""

_PARAMETERS_MAX: Final = 30_000
"""How many values a statement may get; PostgreSQL takes about twice as many."""


@dataclass(frozen=True, slots=True)
class EntryFound:
    """An entry as it stands in the index.

    Attributes:
        key: Its key.
        row: The primary key of the row that it leads to.
        claim: Which claim it is; each has its own.
    """

    key: Key
    row: Row
    claim: UUID


@dataclass(frozen=True, slots=True)
class IndexFinding:
    """Finds the rows of one statement.

    Attributes:
        access: The way to the shards.
        matched: By which index, and which keys.
        rows_max: At most how many rows.
        on_down: What to do if a shard of the index does not answer.
    """

    access: ShardAccess
    matched: Matched
    rows_max: int
    on_down: OnIndexDown

    @property
    def index(self) -> str:
        """The name of the index."""
        return self.matched.index.name

    def find(self, session: SessionOverShards, *, again: bool = False) -> FoundRows | None:
        """Return the rows that have one of the keys; None if it must not be read, or has too many.

        Raises:
            BranchesUnsettledError: A key was handed over, and its shard can't show it yet.
            ShardUnavailableError: A shard of the index does not answer.
            StaleShardMapError: Entries move all the time.
        """
        index, keys = self.matched.index, self.matched.keys
        if again:
            end_decided(self.access, index, keys)
        width = len(index.row_columns)
        limit = min(self.rows_max, _PARAMETERS_MAX // width)
        entries = entries_of(self.access, index, keys, limit=limit + 1) if keys else []
        if entries is None:
            return None
        own = rows_given(session, index, keys) if keys else []
        rows = list(dict.fromkeys([*(each.row for each in entries), *own]))
        if len(rows) > limit:
            return None
        claims = frozenset((each.key, each.row, each.claim) for each in entries)
        return FoundRows(rows, (claims, frozenset(own)))

    def among(self, rows: Sequence[Row]) -> ColumnElement[bool]:
        """Return the condition that a row of the statement is one of these."""
        names = [own.name for own in self.matched.index.definition.base.primary_key.columns]
        return is_among(self.matched.used, names, rows)


def is_among(used: FromClause, names: Sequence[str], rows: Sequence[Row]) -> ColumnElement[bool]:
    """Return the condition that the named columns, which are the primary key, are one of these."""
    columns = [next(own for own in used.c if own.name == name) for name in names]
    if len(columns) == 1:
        return columns[0].in_([row[0] for row in rows])
    return tuple_(*columns).in_(rows)


def entries_of(
    access: ShardAccess, index: ShardedIndex, keys: Iterable[Key], *, limit: int
) -> list[EntryFound] | None:
    """Return the entries of some keys; None if a shard says that the index is not ready.

    Each shard that has some is asked once, all at the same time, in one statement that is a
    transaction of its own.

    Args:
        access: The way to the shards.
        index: Which index.
        keys: Values of the types of its columns.
        limit: At most how many of a shard.

    Raises:
        ShardUnavailableError: A shard does not answer.
        StaleShardMapError: The entries move all the time.
    """
    found: list[EntryFound] = []
    for rows in ask_index(access, index, list(keys), _entries(index).limit(limit)):
        if not rows:
            return None
        found += [entry_found(index, row) for row in rows if row[-1] is not None]
    return found


def entry_found(index: ShardedIndex, row: Sequence[Any]) -> EntryFound:
    """Return the entry whose key, row and claim a row begins and ends with."""
    of_key, of_row = len(index.key_columns), len(index.row_columns)
    return EntryFound(tuple(row[:of_key]), tuple(row[of_key : of_key + of_row]), row[-1])


def ask_index(
    access: ShardAccess,
    index: ShardedIndex,
    keys: Sequence[Key],
    statement: Select[Any],
    parameters: Mapping[str, Any] | None = None,
) -> list[Sequence[Sequence[Any]]]:
    """Return what the shards say that have entries of some keys, each asked for its own keys.

    Args:
        access: The way to the shards.
        index: Which index.
        keys: Which keys; the statement finds them in the lists of `listed_keys`.
        statement: What to ask.
        parameters: What else it is executed with.

    Raises:
        ShardKeyError: The first column of a key is of another type.
        ShardUnavailableError: A shard does not answer.
        StaleShardMapError: The entries move all the time.
    """
    for _ in range(_LOOKS_MAX - 1):
        try:
            return _ask_index(access, index, keys, statement, parameters or {})
        except StaleShardMapError:
            continue  # the map has been read again
    return _ask_index(access, index, keys, statement, parameters or {})


def _ask_index(
    access: ShardAccess,
    index: ShardedIndex,
    keys: Sequence[Key],
    statement: Select[Any],
    parameters: Mapping[str, Any],
) -> list[Sequence[Sequence[Any]]]:
    shard_map = access.router.map_of(index.group)
    placed = shard_map.placed(keys, lambda key: index.group.checked_key(key[0]))
    questions = {}
    with access.learning(), ExitStack() as stack:
        for shard, mine in placed.items():
            buckets = shard_map.buckets_of(index.group.checked_key(key[0]) for key in mine)
            owned = owns_buckets(shard_map, buckets, schema=access.schema)
            values = {f"k{at}": [key[at] for key in mine] for at in range(len(index.key_columns))}
            with access.asking(shard):
                plain = stack.enter_context(access.companions.side_engines[shard].connect())
                # One statement needs no BEGIN, and its snapshot is as new as can be.
                conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            asked = partial(_ask, conn, statement.where(owned), {**parameters, **values})
            questions[shard] = conn, asked
        return list(ask_connected(access.fan_out, questions).given.values())


def _ask(
    conn: Connection, statement: Select[Any], values: Mapping[str, Any]
) -> Sequence[Sequence[Any]]:
    return conn.execute(statement, values).all()


def rows_given(session: SessionOverShards, index: ShardedIndex, keys: Sequence[Key]) -> list[Row]:
    """Return the primary keys of rows that the session's transaction has given one of ``keys``."""
    access = session.shard_access
    found: list[Row] = []
    for shard, conn in session.written_parts.items():
        with access.asking(shard):
            if rows := noted_rows(conn, index, schema=access.schema):
                parameters = listed(sorted(rows), len(index.row_columns))
                wanted = {*keys}
                given = conn.execute(_given(index), parameters)
                width = len(index.row_columns)
                found += [tuple(row[:width]) for row in given if tuple(row[width:]) in wanted]
    return found


@declared_once
def _entries(index: ShardedIndex) -> Select[Any]:
    """Return the statement for entries of many keys; it has no row if the index is not ready."""
    known = index_tables(index.definition.schema).index_table
    columns = index.key_columns
    entries: FromClause = index.table
    if len(columns) == 1:
        same = columns[0] == any_(_list("k0", columns[0]))
    else:
        wanted = listed_keys(index)
        equal = [own == wanted.c[f"k{at}"] for at, own in enumerate(columns)]
        entries, same = wanted.join(index.table, and_(*equal)), true()
    return (
        select(*columns, *index.row_columns, index.table.c[CLAIM])
        .select_from(known.outerjoin(entries, same))
        .where(
            known.c.name == index.name,
            known.c.state == "ready",
            known.c.fingerprint == fingerprint(index.definition),
        )
    )


def listed_keys(index: ShardedIndex) -> FromClause:
    """Return a relation of keys that parameters ``k0``, ``k1`` and so on hold, as lists."""
    columns = index.key_columns
    lists = [_list(f"k{at}", own) for at, own in enumerate(columns)]
    named = [column(f"k{at}", _listed_type(own)) for at, own in enumerate(columns)]
    return func.unnest(*lists).table_valued(*named, name="wanted").render_derived()


def _list(name: str, own: Column[Any]) -> ColumnElement[Any]:
    return cast(bindparam(name), ARRAY(_listed_type(own)))


def _listed_type(own: Column[Any]) -> Any:  # noqa: ANN401 -- a type, or its class
    if isinstance(own.type, String):
        return Text
    # Whatever a bigint holds compares with an integer; it need not fit into one.
    return BigInteger if isinstance(own.type, Integer) else own.type


@declared_once
def _given(index: ShardedIndex) -> Any:  # noqa: ANN401 -- a Select of as many columns
    base = index.definition.base
    wanted = wanted_rows(len(index.row_columns))
    primary = list(base.primary_key.columns)
    same = [own == from_text(wanted.c[f"c{at}"], own) for at, own in enumerate(primary)]
    computed = index.definition.projection(base)
    return (
        select(*primary, *(computed[name] for name in index.definition.key))
        .select_from(wanted.join(base, and_(*same)))
        .where(index.definition.is_indexed(base))
    )
