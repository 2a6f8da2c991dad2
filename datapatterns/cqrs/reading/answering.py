"""Ask a read model in a table, in one snapshot with its checkpoint and its log.

Its tables are locked against being replaced before there is a snapshot: one that is older than
the rows of the table that has taken the name meanwhile would find it empty.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, TypeVarTuple

from psycopg import sql
from sqlalchemy import (
    Connection,
    Row,
    Table,
    Text,
    and_,
    column,
    exists,
    func,
    literal,
    select,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import OID, REGCLASS
from sqlalchemy.sql.selectable import TypedReturnsRows

from datapatterns.cqrs.definition import AnyProjection, TableProjection
from datapatterns.cqrs.reading.answers import Age, Answer, Attempted, Demand, Missed
from datapatterns.cqrs.reading.log_identity import shown_mark
from datapatterns.cqrs.reading.tokens import Token, check_log
from datapatterns.cqrs.running.leasing import is_shown, shown_version
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.cqrs.tables.targets import quoted_table
from datapatterns.errors import IsolationLevelError, ReadModelMovedError
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore
from datapatterns.sql.composing import execute

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

OF_ONE_SNAPSHOT = ("repeatable read", "serializable")
"""At which levels all statements of a transaction see the same."""


def rows_of(
    statement: TypedReturnsRows[*Ts],
) -> Callable[[Connection], list[Row[*Ts]]]:
    """Return the question that a ``select()`` is; give it a LIMIT if there may be many rows."""
    return lambda conn: list(conn.execute(statement).all())


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """What is asked of a read model in tables.

    Attributes:
        store: Where the events and the checkpoints are.
        ask: What is asked of it.
    """

    store: EventStore
    projection: type[TableProjection]
    ask: Callable[[Connection], T]

    def attempt(
        self, conn: Connection, demand: Demand, *, anyway: bool, final: Position | None = None
    ) -> Attempted[T]:
        """Return the answer if it is fresh enough, or ``anyway`` if it is there.

        Args:
            conn: A connection in a REPEATABLE READ transaction that has not begun to read.
            demand: How fresh it has to be.
            anyway: Answer also if it is not.
            final: Up to where the log was final before this transaction began.

        Raises:
            FinalPositionNeededError: ``final`` is needed and was not given.
            ForeignTokenError: The token is of another log.
        """
        lock_names(conn, self.projection)
        standing = _read_standing(conn, self.store.schema, self.projection)
        if standing is not None and standing.is_inline and final is None:
            raise FinalPositionNeededError
        return self._answered(conn, standing, final, demand, anyway=anyway)

    def attempt_in(self, conn: Connection, demand: Demand, *, anyway: bool) -> Attempted[T]:
        """Do as `attempt` does, in a transaction of the caller's that may have read already.

        Raises:
            ForeignTokenError: The token is of another log.
            IsolationLevelError: Its statements see each a moment of their own.
            MarkUnpublishedError: Appends keep the read model, and nobody publishes the mark.
            ReadModelMovedError: The table was replaced after it had begun to read.
        """
        lock_names(conn, self.projection)
        _check_snapshot(conn, self.projection)
        standing = _read_standing(conn, self.store.schema, self.projection)
        # What the snapshot itself knows; how far the log is now would be later than that.
        is_inline = standing is not None and standing.is_inline
        final = self.store.high_water_mark(conn, published=True) if is_inline else None
        return self._answered(conn, standing, final, demand, anyway=anyway)

    def _answered(
        self,
        conn: Connection,
        standing: "_Standing | None",
        final: Position | None,
        demand: Demand,
        *,
        anyway: bool,
    ) -> Attempted[T]:
        mark = shown_mark(conn, self.store.schema, self.projection)
        if demand.after is not None:
            check_log(demand.after, mark)
        position = None if standing is None else standing.position
        age = read_age(conn, self.store.schema, self.projection, position or START)
        # Appends keep it: all that is visible shows. If none do any more, ``final`` tells how far
        # the log is, and nothing of the read model.
        if final is not None and standing is not None and standing.is_inline:
            position, age = final, Age(final, 0.0, age.parked)
        met = position is not None and demand.is_met(position, age)
        if position is None or not (met or anyway):
            return Missed(self.projection.name, position, demand.goal(position, age))
        return answer(self.ask(conn), Token(position, mark), age, is_stale=not met)


class FinalPositionNeededError(Exception):
    """Appends keep the read model, so up to where it is whole only the log knows, and not later."""


@dataclass(frozen=True, slots=True)
class _Standing:
    position: Position
    is_inline: bool


def _read_standing(
    conn: Connection, schema: str, projection: type[TableProjection]
) -> _Standing | None:
    tables = projection_tables(schema)
    versions = tables.projections.c
    row = conn.execute(
        select(func.min(tables.shards.c.position), versions.mode)
        .join_from(tables.projections, tables.shards)
        .where(is_shown(tables, projection))
        .group_by(versions.mode)
    ).one_or_none()
    return None if row is None else _Standing(Position(row[0]), row[1] == "inline")


def answer(value: T, token: Token, age: Age, *, is_stale: bool) -> Answer[T]:
    """Return an answer that shows the log up to ``token``."""
    behind = age.behind(token.position)
    return Answer(value, token, behind, age.seconds_behind, age.parked, is_stale)


def read_age(
    conn: Connection, schema: str, projection: type[AnyProjection], position: Position
) -> Age:
    """Return how what shows the log up to ``position`` looks beside it.

    Not by the mark, which no snapshot but the newest can tell: what is visible to the question
    and not shown by the read model is what it is behind, final or not.

    Events on another server cannot be asked for: there it is what a runner has seen last, and for
    how long the read model has not shown all that was final, which is an upper bound.
    """
    events = event_tables(schema).all_events
    newest = select(events.c.position).order_by(events.c.position.desc()).limit(1)
    oldest_unseen = (
        select(events.c.at)
        .where(events.c.position > position)
        .order_by(events.c.position)
        .limit(1)
        .scalar_subquery()
    )
    seconds = func.extract("epoch", func.clock_timestamp() - oldest_unseen)
    tables = projection_tables(schema)
    # Of one in tables whatever has taken its place.
    in_table = issubclass(projection, TableProjection)
    version = shown_version(tables, projection) if in_table else literal(projection.version)
    shards, followed = tables.shards, tables.followed
    parked = select(func.sum(shards.c.parked)).where(
        shards.c.name == projection.name, shards.c.version == version
    )
    since = func.min(func.coalesce(followed.c.caught_up_at, text("'-infinity'::timestamptz")))
    # Numbers are subtracted: of what has no end, PostgreSQL before 17 has no interval.
    unsure = func.extract("epoch", func.clock_timestamp()) - func.extract("epoch", since)
    seen = (
        select(func.max(followed.c.mark).label("mark"), unsure.label("seconds"))
        .where(followed.c.name == projection.name, followed.c.version == version)
        .subquery()
    )
    seen_to, last, behind, aside = conn.execute(
        select(
            seen.c.mark,
            func.coalesce(seen.c.mark, newest.scalar_subquery()),
            func.coalesce(seen.c.seconds, seconds),
            parked.scalar_subquery(),
        )
    ).one()
    return Age(
        Position(last or START),
        max(0.0, float(behind or 0)),
        int(aside or 0),
        is_seen=seen_to is None,
    )


def lock_names(conn: Connection, projection: type[TableProjection]) -> None:
    """Keep the tables that the read model's names mean now, until the transaction ends."""
    places = {(conn.schema_for_object(each), each.name) for each in _targets(projection)}
    # In one order everywhere, or two who lock several could wait for each other.
    names = [
        sql.Identifier(*filter(None, place))
        for place in sorted(places, key=lambda place: (place[0] or "", place[1]))
    ]
    execute(conn, sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(", ").join(names)))


def _targets(projection: type[TableProjection]) -> list[Table]:
    return [model.table for model in read_models_of(projection).values()]


def _check_snapshot(conn: Connection, projection: type[TableProjection]) -> None:
    level, *same = conn.execute(
        select(
            func.current_setting("transaction_isolation", type_=Text),
            *(_is_same_table(conn, target) for target in _targets(projection)),
        )
    ).one()
    if level not in OF_ONE_SNAPSHOT:
        raise IsolationLevelError(found=str(level), needed=OF_ONE_SNAPSHOT[0])
    if not all(same):
        raise ReadModelMovedError(
            projection.name, "was replaced after this transaction had taken its snapshot"
        )


def _is_same_table(conn: Connection, target: Table) -> Any:  # noqa: ANN401 -- EXISTS as a column
    # Names and files are resolved as of now, pg_class is read as of the snapshot. So they differ
    # if another table has taken the name since, or its rows another file.
    name = quoted_table(conn, target).replace("%%", "%")
    now = literal(name).cast(REGCLASS).cast(OID)
    classes = table(
        "pg_class", column("oid"), column("relname"), column("relfilenode"), schema="pg_catalog"
    )
    file_now = func.coalesce(func.pg_relation_filenode(now), 0)
    return exists().where(
        and_(
            classes.c.oid == now,
            classes.c.relname == target.name,
            classes.c.relfilenode == file_now,
        )
    )
