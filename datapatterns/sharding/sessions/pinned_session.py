"""A session on the one shard of one key."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any, NoReturn, cast

from sqlalchemy import (
    ClauseElement,
    CompoundSelect,
    Connection,
    Delete,
    Executable,
    Insert,
    Result,
    Select,
    Table,
    Update,
    event,
)
from sqlalchemy.orm import (
    FromStatement,
    Mapper,
    ORMExecuteState,
    Session,
    SessionTransaction,
    UOWTransaction,
    with_loader_criteria,
)
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import ScatterRefusedError, ShardKeyError, UnroutableStatementError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.ending import place_on
from datapatterns.sharding.companions import Attendance, Completion
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.fan_out import CancelledAfterwards
from datapatterns.sharding.maps.ownership import claim_buckets
from datapatterns.sharding.reaching.tokens import ShardToken
from datapatterns.sharding.routing.footprint import Footprint, footprint_of, leaf_of
from datapatterns.sharding.routing.instances import declared_key, key_of
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.routing.write_keys import (
    changed_rows,
    insert_keys,
    updates_by_primary_key,
)
from datapatterns.sharding.seeing.timing import TimedFlush, timed
from datapatterns.sharding.sessions.pinned_references import PinnedReferences
from datapatterns.sharding.sessions.settled_values import settle_values
from datapatterns.sharding.sessions.statements import all_sets, refuse_other_schemas
from datapatterns.sharding.strategies.strategy import Key, KeyPart
from datapatterns.transactions import A_TRANSACTION


class PinnedSession(Session):
    """A plain `Session` on the shard that holds one key, seeing only the rows of that key.

    Mapped classes of the group are filtered by the key, in every SELECT, UPDATE and DELETE; objects
    and INSERTs of another key are refused. Statements on a group's `Table` must name the key
    themselves, and SQL text is passed on as it is: it sees whatever the shard holds.
    """

    def __init__(self, access: ShardAccess, group: EntityGroup, key: Key, **options: Any) -> None:  # noqa: ANN401 -- what Session takes
        self._access = access
        self._group = group
        self._key = key
        self._shard_map = access.router.map_of(group)
        self._bucket = self._shard_map.strategy.bucket(key)
        self.shard_id = self._shard_map.shard_of(key)
        self._flushed = TimedFlush(access.load)
        self._referring = PinnedReferences(access.references)
        self._begun_on: Connection | None = None
        self._wrote = False
        self._waiting: list[Completion] = []
        self.token = ShardToken()
        """What a replica has to show to whoever comes after this session, as of `ShardSession`."""
        super().__init__(**{**options, "bind": access.engines[self.shard_id]})

    @property
    def shard_access(self) -> ShardAccess:
        """The way to the shards; for what is kept beside their rows, not for applications."""
        return self._access

    @property
    def only_key(self) -> Key:
        """The key whose rows are all that it sees."""
        return self._key

    @property
    def written_parts(self) -> dict[str, Connection]:
        """The connection of the running transaction, if it may have written; as of all shards."""
        conn = self._begun_on
        return {self.shard_id: conn} if self._wrote and conn is not None else {}

    def connection(self, *args: Any, **named: Any) -> Connection:  # noqa: ANN401 -- as in Session
        """Return the connection of this session's transaction, on the key's shard."""
        with self._access.asking(self.shard_id):
            return super().connection(*args, **named)

    def bulk_save_objects(self, *_args: Any, **_named: Any) -> NoReturn:  # noqa: ANN401 -- as in Session
        """Refuse to write rows past all checks of their keys.

        Raises:
            UnroutableStatementError: Always.
        """
        raise UnroutableStatementError(
            "bulk_save_objects() and its like write rows without a look at their keys",
            "use add_all(), or execute insert() or update() with a list of rows",
        )

    bulk_insert_mappings = bulk_save_objects
    bulk_update_mappings = bulk_save_objects

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """Write what has changed.

        Raises:
            ReferenceWriteError: An object refers to one that may be on another shard.
            ShardKeyError: An object belongs to another key; nothing of the flush is kept.
        """
        self.connection_callable = self._connection_for
        try:
            with self._flushed:
                super().flush(objects)
        finally:
            self.connection_callable = None
            self._referring.end_flush()

    def _connection_for(
        self,
        mapper: Any = None,  # noqa: ANN401 -- as SQLAlchemy declares it
        instance: object | None = None,
        **_named: Any,  # noqa: ANN401 -- as SQLAlchemy declares it
    ) -> Connection:
        shard_key = declared_key(mapper, self._access.placements)
        key = key_of(instance, shard_key)
        if shard_key.group is not self._group or key != self._key:
            raise self._foreign(key)
        self._flushed.wrote(self._shard_map, self._bucket, self._key)
        self._wrote = True
        conn = self.connection()
        self._referring.flushes(instance, conn)
        return conn

    def _execute(self, state: ORMExecuteState) -> Result[Any] | None:
        refuse_other_schemas(state.execution_options)
        settle_values(state)
        statement = state.statement
        placements = self._access.placements
        sharded = [
            shard_key
            for part in visitors.iterate(cast("ClauseElement", statement))
            if isinstance(part, Table) and (shard_key := placements.shard_key(part)) is not None
        ]
        if any(shard_key.group is not self._group for shard_key in sharded):
            raise self._foreign(None)
        if sharded:
            self._check_keys(state, statement)
            self._referring.refuse(state)
        if state.is_orm_statement and not state.is_column_load and not state.is_insert:
            statement = statement.options(*self._criteria())
        writes = isinstance(state.statement, Insert | Update | Delete)
        self._wrote = self._wrote or not isinstance(state.statement, SelectBase)
        counted = (self._access.load, self._shard_map, (self._bucket,), (self._key,))
        with self._access.asking(self.shard_id), timed(*counted, writes=writes):
            return state.invoke_statement(statement)

    def _check_keys(self, state: ORMExecuteState, statement: Executable) -> None:
        placements = self._access.placements
        sets = all_sets(state)
        if isinstance(statement, FromStatement):
            self._check_keys(state, statement.element)
            return
        if isinstance(statement, Insert):
            leaf = leaf_of(statement.table, placements)
            for key in insert_keys(statement, sets, leaf, state.bind_mapper):
                if key != self._key:
                    raise self._foreign(key)
        elif isinstance(statement, Update | Delete):
            self._check_change(state, statement)
        elif isinstance(statement, SelectBase):
            self._check_read(statement, sets[0] if sets else {}, strict=not state.is_orm_statement)

    def _check_change(self, state: ORMExecuteState, statement: Update | Delete) -> None:
        by_primary_key = updates_by_primary_key(state)
        footprint, keys = changed_rows(
            statement,
            all_sets(state),
            self._access.placements,
            state.bind_mapper,
            by_primary_key=by_primary_key,
        )
        if "parententity" not in statement.table._annotations or by_primary_key:  # noqa: SLF001 -- as SQLAlchemy asks
            self._check_confined(footprint, keys)
            return
        # The ORM adds the key to what is about mapped classes; a Table it leaves alone.
        for part in visitors.iterate(statement):
            if isinstance(part, Select) and self._names_sharded(part):
                for row in all_sets(state) or ({},):
                    self._check_read(part, row, strict=True)

    def _check_read(self, statement: SelectBase, parameters: Parameters, *, strict: bool) -> None:
        if isinstance(statement, Select | CompoundSelect):  # else SQL text, which is refused below
            statement = statement.options(*self._criteria())
        footprint = footprint_of(statement, self._access.placements, strict=strict)
        self._check_confined(footprint, footprint.keys(parameters))

    def _check_confined(self, footprint: Footprint, keys: frozenset[Key] | None) -> None:
        if keys is None or not keys <= {self._key}:
            raise ScatterRefusedError(footprint.tables)

    def _names_sharded(self, select: SelectBase) -> bool:
        placements = self._access.placements
        return any(
            isinstance(part, Table) and placements.shard_key(part) is not None
            for part in visitors.iterate(select)
        )

    def _criteria(self) -> list[Any]:
        key = self._key
        if isinstance(key, tuple):
            return list(chain(*(_criteria_of_parts(each, key) for each in self._group.mappers())))
        return [
            # As a lambda, which SQLAlchemy calls for each alias; an expression it would not adapt
            # in every join.
            with_loader_criteria(
                mapper.class_, lambda entity: _key_attribute(entity) == key, include_aliases=True
            )
            for mapper in self._group.mappers()
        ]

    def _begun(self, connection: Connection) -> None:
        if not connection.in_nested_transaction():
            newest = self._access.router.map_of(self._group)
            if newest.shard_of(self._key) == self.shard_id:
                # The key may have got a bucket of its own since the last transaction.
                self._shard_map, self._bucket = newest, newest.strategy.bucket(self._key)
            with self._access.asking(self.shard_id):
                claim_buckets(
                    connection, self._shard_map, (self._bucket,), schema=self._access.schema
                )
            self._begun_on = connection

    def _before_commit(self) -> None:
        if self.in_nested_transaction():
            return
        self.flush()
        access = self._access
        # Claimed again, it keeps what was claimed: whoever refuses now may commit later.
        self._waiting += access.companions.before_commit(access, self.written_parts)

    def _ended(self) -> None:
        self._wrote = False
        self._waiting.clear()  # of a rollback: what was claimed leads nowhere

    def _committed(self) -> None:
        if (begun_on := self._begun_on) is None or self.in_nested_transaction():
            return
        self._begun_on = None
        attendance = Attendance()
        attendance.finish(self._access, [each.committed for each in self._waiting])
        self._waiting.clear()
        if attendance.cancelled is not None:
            raise attendance.cancelled
        if self._access.replicas.has(self.shard_id):
            # What is claimed cannot have moved since the map of its claim.
            epochs = {self._shard_map.group_id: self._shard_map.epoch}
            look = partial(place_on, begun_on)
            # Left in the middle, it would hide that the commit has happened.
            try:
                places = {self.shard_id: self._access.fan_out.undisturbed(look, A_TRANSACTION)}
            except CancelledAfterwards as cancelled:
                raise cancelled.told() from cancelled.__cause__
            self.token = self.token.with_all_of(ShardToken(places, epochs))

    def _foreign(self, key: Key | None) -> ShardKeyError:
        found = "another group" if key is None else f"key {key!r}"
        return ShardKeyError(
            self._group.name, f"this session is pinned to {self._key!r}, not to {found}"
        )


@event.listens_for(PinnedSession, "do_orm_execute", retval=True)
def _on_execute(state: ORMExecuteState) -> Result[Any] | None:
    return cast("PinnedSession", state.session)._execute(state)  # noqa: SLF001 -- of this module


@event.listens_for(PinnedSession, "after_flush")
def _on_flush(session: Session, context: UOWTransaction) -> None:
    cast("PinnedSession", session)._referring.flushed(context)  # noqa: SLF001 -- of this module


@event.listens_for(PinnedSession, "after_begin")
def _on_begin(session: Session, _transaction: object, connection: Connection) -> None:
    cast("PinnedSession", session)._begun(connection)  # noqa: SLF001 -- of this module


@event.listens_for(PinnedSession, "before_commit")
def _before_commit(session: Session) -> None:
    cast("PinnedSession", session)._before_commit()  # noqa: SLF001 -- of this module


@event.listens_for(PinnedSession, "after_transaction_end")
def _on_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        cast("PinnedSession", session)._ended()  # noqa: SLF001 -- of this module


@event.listens_for(PinnedSession, "after_commit")
def _on_commit(session: Session) -> None:
    cast("PinnedSession", session)._committed()  # noqa: SLF001 -- of this module


def _key_attribute(entity: Any) -> Any:  # noqa: ANN401 -- a mapped class or an alias of one
    return _part_attribute(entity, 0)


def _second_attribute(entity: Any) -> Any:  # noqa: ANN401 -- as above
    return _part_attribute(entity, 1)


def _part_attribute(entity: Any, part: int) -> Any:  # noqa: ANN401 -- as above
    mapper: Mapper[Any] = entity.__mapper__  # inspect() does not know what stands for an entity
    column = mapper.base_mapper.local_table.c[mapper.class_.__shard__.columns[part]]
    return getattr(entity, mapper.get_property_by_column(column).key)


def _criteria_of_parts(mapper: Mapper[Any], key: tuple[KeyPart, KeyPart]) -> list[Any]:
    # Each by itself: SQLAlchemy takes the values out of the lambdas.
    first, second = key
    return [
        with_loader_criteria(
            mapper.class_, lambda entity: _key_attribute(entity) == first, include_aliases=True
        ),
        with_loader_criteria(
            mapper.class_, lambda entity: _second_attribute(entity) == second, include_aliases=True
        ),
    ]
