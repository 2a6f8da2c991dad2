"""What a projection makes of pages of events, each time from nothing."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast

from sqlalchemy import Connection, Table, delete, inspect, select
from sqlalchemy.schema import sort_tables

from datapatterns.cqrs import Projection, RedisProjection, SetProjection
from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.determinism.watching import WatchedChanges
from datapatterns.cqrs.in_redis.redis_content import RedisContent
from datapatterns.cqrs.in_redis.redis_folding import fold_changes
from datapatterns.cqrs.tables.projecting import UnappliableError, apply_events
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.cqrs.tables.set_given import apply_given
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.event_sourcing.states.decider import refuse_unfinished
from datapatterns.purity import watched

P = TypeVar("P", bound=AnyProjection)
T = TypeVar("T")
A = ParamSpec("A")

Pages: TypeAlias = Sequence[Sequence[RecordedEvent]]
Contents: TypeAlias = dict[tuple[Hashable, ...], Any]
"""What a read model holds: by table and primary key the row, by place in Redis the value."""
Notice: TypeAlias = Callable[[str], object]
ApplyPage: TypeAlias = Callable[[Connection, Sequence[RecordedEvent]], object]


class Projected(Protocol):
    """A kind of projection, as the spec asks it."""

    @property
    def survives_redelivery(self) -> bool:
        """Whether it must bear to be given a page twice, as nothing keeps a checkpoint for it."""
        ...

    @property
    def tables(self) -> Sequence[Table]:
        """What it writes; nothing in Redis."""
        ...

    def contents(self, pages: Pages, notice: Notice) -> Contents:
        """Return what the read model holds after ``pages``, each handled by a new process."""
        ...


@dataclass(frozen=True, slots=True)
class InTable:
    """A `Projection`, in the table of its mapped class."""

    projection: type[Projection]
    store: EventStore
    conn: Connection
    survives_redelivery: bool = False

    @property
    def tables(self) -> Sequence[Table]:
        """Its read models'."""
        return [model.table for model in read_models_of(self.projection).values()]

    def contents(self, pages: Pages, notice: Notice) -> Contents:
        """Apply each page as a runner does, on an instance of its own."""
        models = read_models_of(self.projection)
        guarded = _guarded(self.projection, notice)
        with _emptied(self.conn, self.tables):
            for page in pages:
                try:
                    apply_events(self.conn, self.store, guarded, models, page)
                except UnappliableError as error:
                    raise (error.__cause__ or error) from None
            return _rows(self.conn, self.tables)


@dataclass(frozen=True, slots=True)
class InSql:
    """A `SetProjection`, over the events that are given."""

    projection: type[SetProjection]
    store: EventStore
    conn: Connection
    survives_redelivery: bool = False

    @property
    def tables(self) -> Sequence[Table]:
        """Its read models'."""
        return [model.table for model in read_models_of(self.projection).values()]

    def contents(self, pages: Pages, notice: Notice) -> Contents:
        """Run its statements over each page."""
        # Not watched: what statements must not call is refused when they are built.
        del notice
        models = read_models_of(self.projection)
        with _emptied(self.conn, self.tables):
            for page in pages:
                try:
                    apply_given(self.conn, self.store, self.projection, models, page)
                except UnappliableError as error:
                    raise (error.__cause__ or error) from None
            return _rows(self.conn, self.tables)


@dataclass(frozen=True, slots=True)
class InRedis:
    """A `RedisProjection`; what Redis would hold, without Redis."""

    projection: type[RedisProjection]
    store: EventStore
    survives_redelivery: bool = False

    @property
    def tables(self) -> Sequence[Table]:
        """None."""
        return ()

    def contents(self, pages: Pages, notice: Notice) -> Contents:
        """Fold each page as a runner does, on an instance of its own."""
        guarded = _guarded(self.projection, notice)
        content = RedisContent()
        for page in pages:
            changes = fold_changes(self.store, guarded, page, WatchedChanges(notice))
            content.take(changes.resolved(content.stored(changes.additions())))
        return {tuple(place): value for place, value in content.places().items()}


@dataclass(frozen=True, slots=True)
class ByFunction:
    """An application's own projector, which writes ``tables`` and keeps its own checkpoint."""

    apply: ApplyPage
    tables: Sequence[Table]
    conn: Connection
    survives_redelivery: bool = True

    def contents(self, pages: Pages, notice: Notice) -> Contents:
        """Call the function for each page."""
        # Not watched: it talks to the server, and the driver looks at the clock.
        del notice
        with _emptied(self.conn, self.tables):
            for page in pages:
                refuse_unfinished(self.apply(self.conn, page), "the projector")
            return _rows(self.conn, self.tables)


def table_of(model: Any) -> Table:  # noqa: ANN401 -- a mapped class or a table
    """Return the table of a mapped class, or the table itself."""
    return model if isinstance(model, Table) else inspect(model).local_table


def _guarded(projection: type[P], notice: Notice) -> type[P]:
    handlers = tuple(
        replace(
            handler,
            apply=_finished(watched(handler.apply, notice)),
            keys=handler.keys and watched(handler.keys, notice),
        )
        for handler in projection.handlers
    )

    def instance() -> P:
        # Not of a subclass: what handlers keep in their class must be seen by the next page.
        made = projection()
        vars(made)["handlers"] = handlers
        return made

    return cast("type[P]", instance)


def _finished(apply: Callable[..., T]) -> Callable[..., T]:
    def applied(*args: Any) -> T:  # noqa: ANN401 -- as the handler takes them
        answer = apply(*args)
        refuse_unfinished(answer, "a handler")
        return answer

    return applied


@contextmanager
def _emptied(conn: Connection, tables: Sequence[Table]) -> Iterator[None]:
    began = not conn.in_transaction()
    savepoint = conn.begin_nested()
    try:
        # Rows that refer to others first.
        for table in reversed([t for t in sort_tables(tables) if t in tables]):
            conn.execute(delete(table))
        yield
        if not savepoint.is_active:
            raise RuntimeError(
                "the projector has ended the transaction, and what it wrote may stay;"
                " let the caller commit"
            )
    finally:
        if savepoint.is_active:
            savepoint.rollback()
        if began:
            conn.rollback()


def _rows(conn: Connection, tables: Sequence[Table]) -> Contents:
    # What is deferred would come out at the COMMIT, and there is none.
    conn.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    return {
        (table.fullname, *place): row for table in tables for place, row in _placed(conn, table)
    }


def _placed(conn: Connection, table: Table) -> Iterator[tuple[tuple[Hashable, ...], Any]]:
    key = list(table.primary_key)
    rows = [dict(row) for row in conn.execute(select(table).order_by(*key)).mappings()]
    if not key:  # then rows that are alike count, and have no order
        return (((place,), row) for place, row in enumerate(sorted(rows, key=repr)))
    return ((tuple(_hashable(row[c.name]) for c in key), row) for row in rows)


def _hashable(value: Any) -> Hashable:  # noqa: ANN401 -- of whatever type a key has
    return value if isinstance(value, Hashable) else repr(value)
