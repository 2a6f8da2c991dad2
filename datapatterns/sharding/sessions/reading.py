"""Reads of a session over shards: from one shard, or gathered from several."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Executable, Result, Select, true
from sqlalchemy.orm import FromStatement, ORMExecuteState
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import (
    ScatterRefusedError,
    ShardUnavailableError,
    StaleShardMapError,
    UnmergeableQueryError,
)
from datapatterns.sharding.broadcasting.statements import locks_copies
from datapatterns.sharding.maps.elsewhere import not_elsewhere
from datapatterns.sharding.maps.ownership import agrees_with_map, owns_buckets
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.options import Asked, asked_for
from datapatterns.sharding.reaching.shortness import refuse_wrong_answers
from datapatterns.sharding.routing.footprint import Footprint, footprint_of
from datapatterns.sharding.routing.footprints import Looked
from datapatterns.sharding.routing.guarded import guarded_shape, with_guard, with_guard_of
from datapatterns.sharding.routing.key_conditions import Leaf, Parameters
from datapatterns.sharding.scatter.agreeing import compares_text
from datapatterns.sharding.scatter.answering import as_result
from datapatterns.sharding.scatter.combining import combine, copy_out
from datapatterns.sharding.scatter.judged_merging import merge
from datapatterns.sharding.scatter.plan_cache import Planned
from datapatterns.sharding.scatter.scatter_plan import (
    ScatterPlan,
    plan_scatter,
    refuse_other_shapes,
)
from datapatterns.sharding.scatter.selected import AnySelect
from datapatterns.sharding.scatter.streaming import Streams
from datapatterns.sharding.seeing.timing import timed_read
from datapatterns.sharding.sessions.asking import Asking, all_rows
from datapatterns.sharding.sessions.broadcast_writing import BroadcastWriting
from datapatterns.sharding.sessions.by_index import ByIndex
from datapatterns.sharding.sessions.carried_ids import buckets_of_id, with_id
from datapatterns.sharding.sessions.columns_at_once import columns_at_once
from datapatterns.sharding.sessions.shard_work import ShardWork
from datapatterns.sharding.sessions.statements import one_set
from datapatterns.sharding.sessions.whole_shards import WholeShards


@dataclass(frozen=True, slots=True)
class Reading:
    """Reads for a session.

    Attributes:
        work: The session's transaction.
        broadcasting: Locks what every shard holds.
        scatter: Whether what names no key may go to all shards without being told to.
    """

    work: ShardWork
    broadcasting: BroadcastWriting
    scatter: bool

    def read(
        self, state: ORMExecuteState, statement: SelectBase, *, by_index: bool = False
    ) -> Result[Any] | None:
        """Read from the shards that the statement names, or an index, or from all if it may.

        Returns:
            The answer; None if SQLAlchemy is to go on with what ``state`` says now.

        Raises:
            ScatterRefusedError: It names none, and may not.
            UnmergeableQueryError: The answers of several shards cannot be merged exactly.
            UnroutableStatementError: It cannot be told what it reads.
        """
        access = self.work.access
        parameters = one_set(state)
        options = state.execution_options
        asked = asked_for(options, scatter=self.scatter)
        statement = with_id(statement, options)
        looked = access.footprints.look(statement, parameters)
        footprint, values = looked.footprint, looked.values
        if locks_copies(statement, footprint):
            # Of a copy alone they would keep nobody out elsewhere.
            first = self.broadcasting.open(footprint.broadcast).first
            return self.work.run(state, statement, first)
        if asked.one is not None:
            return WholeShards(self.work).read(state, statement, footprint, asked.one)
        shard_map = access.router.map_of(footprint.group)
        buckets = footprint.buckets(values, shard_map.strategy)
        buckets = buckets_of_id(options, shard_map, buckets, footprint.group.name)
        if buckets is None:
            scatters = asked.every or _is_scattered(footprint)
            again = None if by_index or asked.explicit else partial(self.read, state, by_index=True)
            found = ByIndex(self.work).read(state, statement, parameters, again, scatters=scatters)
            if found is not None:
                return found
            if not scatters:
                raise ScatterRefusedError(footprint.tables)
        shards = sorted(set(shard_map.owners) if buckets is None else shard_map.shards_of(buckets))
        if buckets is not None and len(shards) <= 1:
            if not by_index and self._goes_on(state, statement, shard_map, buckets, asked, looked):
                return None
            with timed_read(access.load, shard_map, buckets, footprint, values):
                place = _Place(shard_map, buckets, _is_guarded(statement, footprint))
                return self._read_within(state, statement, place, asked)
        return self._read_all(state, statement, looked, _Shards(shard_map, shards, buckets), asked)

    def _read_all(
        self,
        state: ORMExecuteState,
        statement: SelectBase,
        looked: Looked,
        shards: "_Shards",
        asked: Asked,
    ) -> Result[Any]:
        selected = refuse_other_shapes(statement, looked.footprint)
        planned = self._planned(state, selected, one_set(state))
        if asked.policy.partial == "allow":
            refuse_wrong_answers(selected, planned.plan)
        values = {**looked.values, **planned.parameters}
        load, shard_map = self.work.access.load, shards.shard_map
        with timed_read(load, shard_map, shards.buckets, planned.footprint, values):
            self._flush(state)
            if shards.buckets is None and not asked.explicit:
                parts = columns_at_once(self.work, state, planned, shard_map, shards.names)
                if parts is not None:
                    plain = frozenset.intersection(*(part.plain for part in parts.values()))
                    rows = {shard: part.rows for shard, part in parts.items()}
                    return self._merged(state, planned, rows, plain=plain)
            leaves = planned.footprint.blocks[0].leaves
            return self._gather(state, planned, self._guards(shards, leaves), asked)

    def read_objects(
        self, state: ORMExecuteState, statement: FromStatement[Any], source: Select[Any]
    ) -> Result[Any]:
        """Read objects from the rows of ``source``, which must be of one shard.

        So SQLAlchemy reads what an object of a class that inherits has in tables of its own.

        Raises:
            ScatterRefusedError: They are of several.
            UnroutableStatementError: It cannot be told what it reads.
        """
        access = self.work.access
        footprint, values = access.footprints.of(source, one_set(state))
        shard_map = access.router.map_of(footprint.group)
        buckets = footprint.buckets(values, shard_map.strategy)
        if buckets is None or len(shard_map.shards_of(buckets)) > 1:
            raise ScatterRefusedError(footprint.tables)
        shard = self.work.shard_of(shard_map, buckets)
        if buckets and _is_guarded(source, footprint) and shard not in access.citus:
            guard = owns_buckets(shard_map, buckets, schema=access.schema)
            statement = statement._generate()  # noqa: SLF001 -- there is no public name
            statement.element = with_guard(source, guard)
        else:
            self.work.claim(shard, shard_map, buckets)
        with timed_read(access.load, shard_map, buckets, footprint, values):
            return self._read_guarded(state, statement, shard)

    def _goes_on(
        self,
        state: ORMExecuteState,
        statement: SelectBase,
        shard_map: ShardMap,
        buckets: frozenset[int],
        asked: Asked,
        looked: Looked,
    ) -> bool:
        """Let SQLAlchemy go on with the guard and the shard, if nothing else is to be done.

        Beginning anew, as `ShardWork.run` does, takes a third of the time of a short statement.
        """
        work = self.work
        if (
            len(buckets) != 1
            or not isinstance(statement, Select)
            or asked.explicit
            or not work.is_plain
            or not _is_guarded(statement, looked.footprint)
        ):
            return False
        shard = shard_map.owners[next(iter(buckets))]
        if shard in work.access.citus:  # its nodes cannot be asked what the coordinator owns
            return False
        guard = owns_buckets(shard_map, buckets, schema=work.access.schema)
        shape = looked.shape
        guarded = with_guard_of(statement, guard, None if shape is None else shape.guarded)
        if shape is not None and shape.guarded is None:
            shape.guarded = guarded_shape(statement, guard, guarded)
        work.go_on(state, guarded, shard)
        return True

    def _planned(
        self, state: ORMExecuteState, statement: AnySelect, parameters: Parameters
    ) -> Planned:
        access = self.work.access
        streaming = "yield_per" in state.execution_options

        def make() -> tuple[ScatterPlan, Footprint]:
            # Looked at afresh: the plan compares the columns of this very statement.
            footprint = footprint_of(statement, access.placements)
            rows_max = access.merge_rows_max
            plan = plan_scatter(
                statement, footprint, parameters, rows_max=rows_max, streaming=streaming
            )
            return plan, footprint

        if state._remaining_events():  # noqa: SLF001 -- there is no public name
            # Listeners execute what they see with the values that the caller has passed.
            return Planned(*make(), parameters)
        return access.plans.of(statement, parameters, make, streaming=streaming)

    def _read_within(
        self,
        state: ORMExecuteState,
        statement: SelectBase,
        place: "_Place",
        asked: Asked,
    ) -> Result[Any]:
        if not asked.explicit:
            return self._read_one(state, statement, place)
        asking = Asking(self.work, asked.policy)
        shard_id = self.work.shard_of(place.shard_map, place.buckets)
        return asking.on_one(
            shard_id,
            lambda: self._read_one(state, statement, place),
            [column.key or "" for column in statement.selected_columns],
        )

    def _read_one(
        self, state: ORMExecuteState, statement: SelectBase, place: "_Place"
    ) -> Result[Any]:
        shard_map, buckets = place.shard_map, place.buckets
        shard_id = self.work.shard_of(shard_map, buckets)
        if not buckets:  # nothing can match, which any shard may say
            return self.work.run(state, statement, shard_id)
        # Citus would ask its nodes; a claim is a statement of its own, and asks the coordinator.
        is_citus = shard_id in self.work.access.citus
        if place.is_guarded and isinstance(statement, Select) and not is_citus:
            guard = owns_buckets(shard_map, buckets, schema=self.work.access.schema)
            return self._read_guarded(state, with_guard(statement, guard), shard_id)
        # Locks are of no use on rows that are leaving; and what is claimed first is asked first.
        self.work.claim(shard_id, shard_map, buckets)
        return self.work.run(state, statement, shard_id)

    def _read_guarded(
        self, state: ORMExecuteState, statement: Executable, shard_id: str
    ) -> Result[Any]:
        self.work.read_on_replica(shard_id)
        if shard_id not in self.work.parts.on_replicas:
            return self.work.run(state, statement, shard_id)
        try:
            return self.work.run(state, statement, shard_id)
        except (ShardUnavailableError, StaleShardMapError):
            # It has gone, or does not know yet what the primary knows.
            self.work.parts.leave_replicas()
            return self.work.run(state, statement, shard_id)

    # Gathering -----------------------------------------------------------------------------

    def _guards(self, shards: "_Shards", leaves: Sequence[Leaf]) -> dict[str, ColumnElement[bool]]:
        """Return the condition of each shard that it agrees with the map.

        If not all shards are asked, nobody tells that a key has gone to one that is not: so the
        buckets are asked for as well, each as the map knows it. Rows of a bucket that is coming to
        a shard, or has just left it, are read at its owner's only.
        """
        schema = self.work.access.schema
        shard_map, buckets = shards.shard_map, shards.buckets
        guards: dict[str, ColumnElement[bool]] = {}
        for shard_id in shards.names:
            is_citus = shard_id in self.work.access.citus
            if is_citus:
                self.work.claim_citus(shard_id, shard_map)
            guards[shard_id] = (
                true() if is_citus else agrees_with_map(shard_map, shard_id, schema=schema)
            )
            if shard_map.elsewhere(shard_id):
                for leaf in leaves:
                    guards[shard_id] &= not_elsewhere(leaf, shard_map, shard_id, schema=schema)
            if buckets is not None:
                mine = [bucket for bucket in buckets if shard_map.owners[bucket] == shard_id]
                if is_citus:
                    self.work.claim(shard_id, shard_map, mine)
                else:
                    guards[shard_id] &= owns_buckets(shard_map, mine, schema=schema)
        return guards

    def _gather(
        self,
        state: ORMExecuteState,
        planned: Planned,
        guards: Mapping[str, ColumnElement[bool]],
        asked: Asked,
    ) -> Result[Any]:
        plan, parameters = planned.plan, planned.parameters
        statements = {
            shard_id: with_guard(plan.statement, guard) for shard_id, guard in guards.items()
        }
        asking = Asking(self.work, asked.policy)
        if plan.combined is not None:
            return self._combined(planned, statements, state, asking)
        if plan.streamed:
            return self._streamed(planned, statements, state, asking)
        answers = asking.for_rows(state, statements, parameters, all_rows)
        return self._merged(state, planned, answers.given, answers.missing)

    def _merged(
        self,
        state: ORMExecuteState,
        planned: Planned,
        parts: Mapping[str, Sequence[Sequence[Any]]],
        missing: Iterable[str] = (),
        *,
        plain: Collection[int] = (),
    ) -> Result[Any]:
        rows: Sequence[Sequence[Any]] = []
        if parts:
            self._require_one_order(planned.plan, parts)
            judge = partial(self.work.connection_to, next(iter(parts)))
            rows = merge(planned.plan, [*parts.values()], judge, plain=plain)
        return as_result(state.statement, rows, missing)

    @staticmethod
    def _flush(state: ORMExecuteState) -> None:
        if state.session.autoflush and state.execution_options.get("autoflush", True):
            state.session.flush()

    def _streamed(
        self,
        planned: Planned,
        statements: Mapping[str, AnySelect],
        state: ORMExecuteState,
        asking: Asking,
    ) -> Result[Any]:
        streams = Streams(int(state.execution_options["yield_per"]))
        try:
            begun = asking.for_rows(state, statements, planned.parameters, streams.begin)
        except BaseException:
            streams.close()  # those of the other shards
            raise
        return streams.merged(planned.plan, state.statement, begun.given.values(), begun.missing)

    def _combined(
        self,
        planned: Planned,
        statements: Mapping[str, AnySelect],
        state: ORMExecuteState,
        asking: Asking,
    ) -> Result[Any]:
        if state._remaining_events():  # noqa: SLF001 -- there is no public name
            # They see what is executed as it is, and may confine it.
            raise UnmergeableQueryError(
                "what only PostgreSQL can merge, beside a listener of do_orm_execute,",
                "add to the statement itself what the listener would add",
            )
        access, plan, parameters = self.work.access, planned.plan, planned.parameters
        sent = asking.apart(statements, lambda conn, one: copy_out(conn, one, parameters))
        self._require_one_order(plan, sent.given)
        with access.learning(), access.combiner.connection([*sent.given]) as conn:
            rows = combine(plan, [*sent.given.values()], conn, parameters)
        return as_result(state.statement, rows, sent.missing)

    def _require_one_order(self, plan: ScatterPlan, shards: Iterable[str]) -> None:
        if compares_text(plan):
            connections = {shard_id: self.work.connection_to(shard_id) for shard_id in shards}
            self.work.access.text_order.require_one(connections)


@dataclass(frozen=True, slots=True)
class _Place:
    """Buckets of one shard, and whether a condition of the statement asks for them."""

    shard_map: ShardMap
    buckets: frozenset[int]
    is_guarded: bool


@dataclass(frozen=True, slots=True)
class _Shards:
    """Several shards that are asked, in order; and for which buckets, if a statement names some."""

    shard_map: ShardMap
    names: Sequence[str]
    buckets: frozenset[int] | None


def _is_guarded(statement: SelectBase, footprint: Footprint) -> bool:
    return (
        isinstance(statement, Select) and not footprint.early and statement._for_update_arg is None  # noqa: SLF001 -- there is no public name
    )


def _is_scattered(footprint: Footprint) -> bool:
    return all(leaf.shard_key.scatter for block in footprint.blocks for leaf in block.leaves)
