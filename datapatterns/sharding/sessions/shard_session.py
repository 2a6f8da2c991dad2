"""A session over all shards: routed where the key is known, merged exactly where it is not."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Insert,
    Result,
    Select,
    Update,
    event,
    inspect,
)
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import ORMExecuteState, QueryableAttribute, Session, SessionTransaction
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import (
    MultiShardWriteError,
    ScatterRefusedError,
    SettingsError,
    ShardKeyError,
    ShardTransactionEndedError,
    UnmergeableQueryError,
    UnroutableStatementError,
)
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.parts import Parts
from datapatterns.sharding.maps.ownership import agrees_with_map, claim_buckets, owns_buckets
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.routing.footprint import Footprint, footprint_of, leaf_of
from datapatterns.sharding.routing.instances import declared_key, key_of
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.routing.write_keys import (
    changed_rows,
    insert_keys,
    updates_by_primary_key,
)
from datapatterns.sharding.scatter.scatter_plan import AnySelect, ScatterPlan, plan_scatter
from datapatterns.sharding.scatter.scattering import ask_each, merge

_LOCK_SECONDS = 5.0


class ShardSession(Session):
    """A `Session` that finds the shard of each object and statement by the shard key.

    A statement whose WHERE says the key goes to one shard. One that does not is refused unless it
    carries ``execution_options(scatter=True)``; then all shards are asked, and their answers merged
    into what one database would say, or the statement is refused with the clause in the way.

    A transaction may read from many shards and write to one: that one commits or does not. An
    ``atomic`` session's may write to several, and happens on all of them or on none. Between shards
    there is no common snapshot. Rows are written with the same guard that reads carry: a shard
    answers only for what it owns.

    Objects are found, refreshed and written by their primary key, which holds the shard key.
    """

    def __init__(
        self,
        access: ShardAccess,
        *,
        scatter: bool = False,
        atomic: bool = False,
        **options: Any,  # noqa: ANN401 -- what Session takes
    ) -> None:
        if options.get("twophase"):
            # SQLAlchemy prepares readers, too, and leaves branches behind after a crash.
            raise SettingsError("twophase", "leave it out; atomic=True is for several shards")
        # Commits are up to the parts: only they know which comes first.
        super().__init__(join_transaction_mode="rollback_only", **options)
        self._access = access
        self._scatter = scatter
        self._running: str | None = None
        self._atomic = atomic
        self.left_to_recovery: tuple[str, ...] = ()
        """After a commit: the shards that show it only when recovery has been there."""
        self._parts = Parts(access, lock_seconds=_LOCK_SECONDS if atomic else None)
        self._written: set[str] = set()
        self._claimed: set[tuple[int, int]] = set()
        self._is_committed = False

    # What SQLAlchemy asks ------------------------------------------------------------------

    def get_bind(self, *_args: Any, shard_id: str | None = None, **_named: Any) -> Connection:  # noqa: ANN401 -- as in Session
        """Return the transaction's connection to the shard that the running statement is for.

        Raises:
            UnroutableStatementError: No statement is running, so nothing says which shard.
        """
        chosen = shard_id or self._running
        if chosen is None:
            raise UnroutableStatementError(
                "a session over all shards has no connection of its own",
                "execute a statement that names the shard key, or use ShardCluster.connect()",
            )
        with self._access.asking(chosen):
            return self._parts.on(chosen)

    def close(self) -> None:
        """End the transaction without a commit, and give all connections back."""
        super().close()
        self._parts.close()  # of statements that failed before the transaction began

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """Write what has changed, to one shard, or to several if the session is ``atomic``.

        Raises:
            MultiShardWriteError: It belongs to several; nothing of it was sent then.
            ShardTransactionEndedError: A listener changed it after the commit.
        """
        if self._is_committed:
            raise ShardTransactionEndedError(next(iter(self._written), "none"))
        self._check_pending()
        self.connection_callable = self._connection_for
        try:
            super().flush(objects)
        finally:
            self.connection_callable = None

    # Statements ----------------------------------------------------------------------------

    def _route(self, state: ORMExecuteState) -> Result[Any] | None:
        if "shard_id" in state.bind_arguments:
            return None
        statement = state.statement
        if isinstance(statement, SelectBase):
            return self._read(state, statement)
        if isinstance(statement, Insert):
            return self._insert(state, statement)
        if isinstance(statement, Update | Delete):
            return self._change(state, statement)
        raise UnroutableStatementError(
            f"nobody can look into a {type(statement).__name__}",
            "write it in expressions, or work on one shard with ShardCluster.on()",
        )

    def _read(self, state: ORMExecuteState, statement: SelectBase) -> Result[Any]:
        parameters = _one_set(state)
        footprint, values = self._access.footprints.of(statement, parameters)
        shard_map = self._access.router.map_of(footprint.group)
        buckets = footprint.buckets(values, shard_map.strategy)
        if buckets is not None:
            shards = shard_map.shards_of(buckets)
            if len(shards) <= 1:
                return self._read_one(state, statement, shard_map, buckets)
        elif self._may_scatter(state, footprint):
            shards = frozenset(shard_map.owners)
        else:
            raise ScatterRefusedError(footprint.tables)
        if not isinstance(statement, Select) or not footprint.plain:
            raise UnmergeableQueryError("a UNION or subquery", "let each SELECT name one shard key")
        if not footprint.blocks[0].tied:
            raise UnmergeableQueryError(
                "a join that does not compare the shard keys",
                "add the comparison to its ON, or let each table name the key",
            )
        # Looked at afresh: the plan compares the columns of this very statement.
        footprint = footprint_of(statement, self._access.placements)
        plan = plan_scatter(statement, footprint, parameters, rows_max=self._access.merge_rows_max)
        return self._gather(state, plan, shard_map, sorted(shards))

    def _read_one(
        self,
        state: ORMExecuteState,
        statement: SelectBase,
        shard_map: ShardMap,
        buckets: frozenset[int],
    ) -> Result[Any]:
        shard_id = self._shard_of(shard_map, buckets)
        if not buckets:  # nothing can match, which any shard may say
            return self._run(state, statement, shard_id)
        if isinstance(statement, Select) and statement._for_update_arg is None:  # noqa: SLF001
            guard = owns_buckets(shard_map, buckets, schema=self._access.schema)
            return self._run(state, statement.where(guard), shard_id)
        # Locks are of no use on rows that are leaving.
        self._claim(shard_id, shard_map, buckets)
        return self._run(state, statement, shard_id)

    def _gather(
        self, state: ORMExecuteState, plan: ScatterPlan, shard_map: ShardMap, shards: list[str]
    ) -> Result[Any]:
        if self.autoflush:
            self.flush()
        statements = {
            shard_id: plan.statement.where(
                agrees_with_map(shard_map, shard_id, schema=self._access.schema)
            )
            for shard_id in shards
        }
        if _only_columns(plan.statement):
            parts = self._ask_in_parallel(statements, _one_set(state))
        else:
            # Objects go through the session, which is not for several threads.
            parts = [_all_rows(self._run(state, statements[s], s)) for s in shards]
        rows = merge(plan, parts, self._connection_to(shards[0]))
        names = [
            str(column["name"]) for column in cast("AnySelect", state.statement).column_descriptions
        ]
        return IteratorResult(SimpleResultMetaData(names), iter([tuple(row) for row in rows]))

    def _ask_in_parallel(
        self, statements: Mapping[str, AnySelect], parameters: Parameters
    ) -> list[Sequence[Sequence[Any]]]:
        connections = {shard_id: self._connection_to(shard_id) for shard_id in statements}

        def question(shard_id: str) -> Sequence[Sequence[Any]]:
            return connections[shard_id].execute(statements[shard_id], dict(parameters)).all()

        questions = {s: lambda s=s: question(s) for s in statements}
        with self._access.learning():
            return list(ask_each(self._access.executor, questions).values())

    def _insert(self, state: ORMExecuteState, statement: Insert) -> Result[Any]:
        leaf = leaf_of(statement.table, self._access.placements)
        group = leaf.shard_key.group
        keys = insert_keys(statement, _all_sets(state), leaf, state.bind_mapper)
        shard_map = self._access.router.map_of(group)
        return self._write(state, shard_map, shard_map.buckets_of(keys))

    def _change(self, state: ORMExecuteState, statement: Update | Delete) -> Result[Any]:
        sets = _all_sets(state)
        footprint, keys = changed_rows(
            statement,
            sets,
            self._access.placements,
            state.bind_mapper,
            by_primary_key=updates_by_primary_key(state),
        )
        shard_map = self._access.router.map_of(footprint.group)
        if keys is not None:
            return self._write(state, shard_map, shard_map.buckets_with(keys))
        each = [footprint.buckets(row, shard_map.strategy) for row in sets or ({},)]
        known = [buckets for buckets in each if buckets is not None]
        if len(known) < len(each):
            raise ScatterRefusedError(footprint.tables)
        return self._write(state, shard_map, frozenset().union(*known))

    def _write(
        self, state: ORMExecuteState, shard_map: ShardMap, buckets: frozenset[int]
    ) -> Result[Any]:
        if len(shards := shard_map.shards_of(buckets)) > 1:
            raise MultiShardWriteError(shards)
        shard_id = self._shard_of(shard_map, buckets)
        if buckets:
            self._become_writer(shard_id)
            self._claim(shard_id, shard_map, buckets)
        return self._run(state, state.statement, shard_id)

    def _run(self, state: ORMExecuteState, statement: Any, shard_id: str) -> Result[Any]:  # noqa: ANN401 -- any statement
        outer, self._running = self._running, shard_id
        try:
            with self._access.asking(shard_id):
                return state.invoke_statement(statement, bind_arguments={"shard_id": shard_id})
        finally:
            self._running = outer

    # Objects -------------------------------------------------------------------------------

    def _check_pending(self) -> None:
        if self._atomic:
            return
        shards = set(self._written)
        for instance in (*self.new, *self.dirty, *self.deleted):
            if instance in self.dirty and not self.is_modified(instance):
                continue
            shard_key = declared_key(inspect(instance).mapper, self._access.placements)
            key = key_of(instance, shard_key)
            if key is not None:
                shards.add(self._access.router.map_of(shard_key.group).shard_of(key))
        if len(shards) > 1:
            raise MultiShardWriteError(shards)

    def _connection_for(
        self,
        mapper: Any = None,  # noqa: ANN401 -- as SQLAlchemy declares it
        instance: object | None = None,
        **_named: Any,  # noqa: ANN401 -- as SQLAlchemy declares it
    ) -> Connection:
        shard_key = declared_key(mapper, self._access.placements)
        group = shard_key.group
        key = key_of(instance, shard_key)
        if key is None:
            raise ShardKeyError(group.name, f"{shard_key.column} of a new object is not set")
        shard_map = self._access.router.map_of(group)
        shard_id = shard_map.shard_of(key)
        self._become_writer(shard_id)
        self._claim(shard_id, shard_map, (shard_map.strategy.bucket(key),))
        return self._connection_to(shard_id)

    # Transactions --------------------------------------------------------------------------

    def _connection_to(self, shard_id: str) -> Connection:
        with self._access.asking(shard_id):
            return self.connection(bind_arguments={"shard_id": shard_id})

    def _become_writer(self, shard_id: str) -> None:
        if not self._atomic and self._written - {shard_id}:
            raise MultiShardWriteError((*self._written, shard_id))
        self._written.add(shard_id)

    def _claim(self, shard_id: str, shard_map: ShardMap, buckets: Iterable[int]) -> None:
        wanted = {bucket for bucket in buckets if (shard_map.group_id, bucket) not in self._claimed}
        if not wanted:
            return
        conn = self._connection_to(shard_id)
        with self._access.asking(shard_id):
            claim_buckets(conn, shard_map, wanted, schema=self._access.schema)
        # What is claimed inside a savepoint is given back when that is rolled back.
        if not conn.in_nested_transaction():
            self._claimed.update((shard_map.group_id, bucket) for bucket in wanted)

    def _before_commit(self) -> None:
        self.flush()
        if not self.in_nested_transaction():
            self.left_to_recovery = self._parts.commit()
            self._is_committed = True

    def _ended(self) -> None:
        self._is_committed = False
        self._written.clear()
        self._claimed.clear()
        self._parts.close()

    def _may_scatter(self, state: ORMExecuteState, footprint: Footprint) -> bool:
        asked = state.execution_options.get("scatter", self._scatter)
        declared = (leaf.shard_key.scatter for block in footprint.blocks for leaf in block.leaves)
        return bool(asked) or all(declared)

    def _shard_of(self, shard_map: ShardMap, buckets: frozenset[int]) -> str:
        if buckets:
            return next(iter(shard_map.shards_of(buckets)))
        return next(iter(self._written), shard_map.owners[0])


@event.listens_for(ShardSession, "do_orm_execute", retval=True)
def _on_execute(state: ORMExecuteState) -> Result[Any] | None:
    return cast("ShardSession", state.session)._route(state)  # noqa: SLF001 -- of this module


@event.listens_for(ShardSession, "before_commit")
def _on_commit(session: Session) -> None:
    cast("ShardSession", session)._before_commit()  # noqa: SLF001 -- of this module


@event.listens_for(ShardSession, "after_transaction_end")
def _on_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        cast("ShardSession", session)._ended()  # noqa: SLF001 -- of this module


def _one_set(state: ORMExecuteState) -> Parameters:
    sets = _all_sets(state)
    if len(sets) > 1:
        raise UnroutableStatementError("a SELECT with several sets of parameters", "pass one set")
    return sets[0] if sets else {}


def _all_sets(state: ORMExecuteState) -> Sequence[Parameters]:
    given = state.parameters
    if given is None:
        return ()
    return (given,) if isinstance(given, Mapping) else given


def _only_columns(statement: AnySelect) -> bool:
    return all(
        isinstance(column["expr"], ColumnElement)
        or (
            isinstance(column["expr"], QueryableAttribute)
            and column["expr"] is not column["entity"]
        )
        for column in statement.column_descriptions
    )


def _all_rows(result: Result[Any]) -> Sequence[Sequence[Any]]:
    try:
        return result.all()
    except InvalidRequestError as error:
        raise UnmergeableQueryError(
            "a joined eager load of a collection", "use selectinload(), or name the shard key"
        ) from error
