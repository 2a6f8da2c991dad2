"""One INSERT, UPDATE or DELETE for several shards: each gets its own rows or keys, at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy as duplicate
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Delete, Insert, Result, Update, or_, tuple_
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import ORMExecuteState

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.asking import ask_connected
from datapatterns.sharding.routing.footprint import Footprint
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.sessions.shard_work import ShardWork
from datapatterns.sharding.sessions.statements import all_sets
from datapatterns.sharding.strategies.strategy import Key

Write: TypeAlias = Insert | Update | Delete
Places: TypeAlias = Mapping[str, Sequence[int]]
"""Where the rows of each shard stand among the parameters."""


class WriteResult(IteratorResult[Any]):
    """What several shards say about one write.

    Attributes:
        rowcount: How many rows it touched; -1 if a shard does not say.
    """

    def __init__(self, metadata: SimpleResultMetaData, rows: Iterable[Any], rowcount: int) -> None:
        super().__init__(metadata, iter(rows))
        self.rowcount = rowcount


class SplitWriting:
    """Writes of an atomic session to several shards, in its one transaction.

    Args:
        work: The session's transaction.
    """

    def __init__(self, work: ShardWork) -> None:
        self._work = work

    def rows(
        self, state: ORMExecuteState, statement: Write, shard_map: ShardMap, keys: Sequence[Key]
    ) -> Result[Any]:
        """Write rows of which each has its key; what is returned is in the order of the rows.

        Args:
            state: What SQLAlchemy is about to execute.
            statement: That, with a set of parameters for each row or with all rows in its VALUES.
            shard_map: Where keys lie.
            keys: The keys of the rows.

        Raises:
            UnmergeableQueryError: The order of what is returned could not be told, or the rows
                name different columns of a table.
        """
        given = {frozenset(row) for row in all_sets(state)}
        if not state.is_orm_statement and len(given) > 1:
            # One database would take the columns of the first set for those of all.
            raise UnmergeableQueryError(
                "sets of parameters that name different columns", "let each name all of them"
            )
        returns = bool(statement._returning)  # noqa: SLF001 -- there is no public name
        if isinstance(statement, Insert) and returns:
            if statement._post_values_clause is not None:  # noqa: SLF001
                # Rows that conflict may be left out, and nobody says which.
                raise UnmergeableQueryError(
                    "RETURNING beside ON CONFLICT", "leave it out, and read the rows afterwards"
                )
            if isinstance(state.parameters, list):
                statement = statement._generate()  # noqa: SLF001
                statement._sort_by_parameter_order = True  # noqa: SLF001
        places = shard_map.placed(range(len(keys)), keys.__getitem__)
        parts = {shard: _part(state, statement, positions) for shard, positions in places.items()}
        buckets = {
            shard: shard_map.buckets_of(keys[at] for at in positions)
            for shard, positions in places.items()
        }
        return self._write(shard_map, buckets, parts, partial(_in_order, places))

    def changes(
        self,
        state: ORMExecuteState,
        statement: Update | Delete,
        shard_map: ShardMap,
        footprint: Footprint,
        buckets: frozenset[int],
        keys: frozenset[Key] | None,
    ) -> Result[Any]:
        """Change the rows of several keys; each shard is told of its own only.

        On others there may be copies of rows that are just being moved.

        Raises:
            UnmergeableQueryError: It reads other rows, which another shard may hold.
        """
        if not footprint.plain:
            raise UnmergeableQueryError(
                "a subquery in a change of several shards", "change the rows of each key by itself"
            )
        parts, mine = {}, {}
        for shard in sorted(shard_map.shards_of(buckets)):
            mine[shard] = frozenset(b for b in buckets if shard_map.owners[b] == shard)
            condition = self._own(footprint, shard_map, mine[shard], keys)
            parts[shard] = state, statement.where(condition)
        return self._write(shard_map, mine, parts, _concatenated)

    def _own(
        self,
        footprint: Footprint,
        shard_map: ShardMap,
        buckets: frozenset[int],
        keys: frozenset[Key] | None,
    ) -> ColumnElement[bool]:
        leaf = footprint.blocks[0].leaves[0]
        column = leaf.shard_key.of(leaf.used.c)
        if keys is None:
            predicate = partial(
                leaf.shard_key.group.predicate,
                column,
                strategy=shard_map.strategy,
                schema=self._work.access.schema,
            )
            return or_(*(predicate(bucket) for bucket in sorted(buckets)))
        mine = [key for key in keys if shard_map.buckets_with([key]) <= buckets]
        compared = tuple_(*column) if isinstance(column, tuple) else column
        return compared.in_(sorted(mine, key=str))

    def _write(
        self,
        shard_map: ShardMap,
        buckets: Mapping[str, frozenset[int]],
        parts: Mapping[str, tuple[ORMExecuteState, Write]],
        merged: Callable[[Mapping[str, list[Any]]], Iterable[Any]],
    ) -> Result[Any]:
        work = self._work
        state, statement = next(iter(parts.values()))
        if state.session.autoflush:
            state.session.flush()
        work.parts.open(parts)
        connections = {shard: work.connection_to(shard) for shard in parts}
        for shard in parts:
            work.become_writer(shard)

        returns = bool(statement._returning)  # noqa: SLF001 -- there is no public name

        def write(shard: str) -> tuple[list[str], list[Any], int]:
            work.claim(shard, shard_map, buckets[shard])
            result: Any = work.run(*parts[shard], shard)
            rowcount = getattr(result, "rowcount", -1)
            return (list(result.keys()), result.all(), rowcount) if returns else ([], [], rowcount)

        questions = {shard: (connections[shard], partial(write, shard)) for shard in parts}
        # A flush would come in between, on connections that are in use.
        with work.access.learning(), state.session.no_autoflush:
            answers = ask_connected(work.access.fan_out, questions, in_turns=True).given
        counts = [count for _, _, count in answers.values()]
        names, *_ = (names for names, _, _ in answers.values())
        rows = merged({shard: found for shard, (_, found, _) in answers.items()})
        return WriteResult(SimpleResultMetaData(names), rows, -1 if -1 in counts else sum(counts))


def _part(
    state: ORMExecuteState, statement: Write, positions: Sequence[int]
) -> tuple[ORMExecuteState, Write]:
    several: Any = getattr(statement, "_multi_values", ())
    if several:
        rows = list(chain.from_iterable(several))
        statement = statement._generate()  # noqa: SLF001 -- there is no public name
        statement._multi_values = ([rows[at] for at in positions],)  # type: ignore[union-attr]  # noqa: SLF001
        return state, statement
    mine = duplicate(state)
    sets: Sequence[Parameters] = all_sets(state)
    mine.parameters = [dict(sets[at]) for at in positions]
    return mine, statement


def _in_order(places: Places, rows: Mapping[str, list[Any]]) -> Iterable[Any]:
    """Return rows as their parameters stood; none if none are returned."""
    placed: dict[int, Any] = {}
    for shard, found in rows.items():
        if found:
            placed.update(zip(places[shard], found, strict=True))
    return [placed[at] for at in sorted(placed)]


def _concatenated(rows: Mapping[str, list[Any]]) -> Iterable[Any]:
    return chain.from_iterable(rows.values())
