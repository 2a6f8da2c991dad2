"""The statement that loads streams: the latest fitting snapshot of each, and what followed it.

One statement, so one view of the database. Its rows have five columns, whatever they hold: each
column costs as much as decoding a third of an event.

================  =======  ================  ================  ==================  ============
of                place    version           kind              position            content
================  =======  ================  ================  ==================  ============
a stream          its      it begins behind  `STREAM`          the version it has  None
its snapshot      its      of the state      `SNAPSHOT`        of its last event   the state
one whose event   its      of the state      `MISFIT`          of its last event   the state
is missing
a type of event   0        of the schema     `TYPE`            its id              its name
an event          its      its               id of its type    its                 its data
================  =======  ================  ================  ==================  ============

The place is that of the stream among the keys that were asked for, from 1.
"""

from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    BindParameter,
    CompoundSelect,
    FromClause,
    Integer,
    LargeBinary,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    exists,
    func,
    literal,
    null,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql.visitors import replacement_traverse

from datapatterns.event_sourcing.content.contents import event_content, state_column
from datapatterns.event_sourcing.schema import event_tables

STREAM: Final = -1
SNAPSHOT: Final = -2
MISFIT: Final = -3
TYPE: Final = -4

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own
_VERSION: Final = bindparam("version", type_=BigInteger)
_AT: Final = bindparam("at", type_=TIMESTAMP(timezone=True))


class Asked(NamedTuple):
    """What a load asks for; each is a statement of its own, as conditions that are off cost, too.

    Attributes:
        snapshots: Whether to begin at snapshots.
        by_version: Whether the past is asked for by version.
        by_time: Whether it is asked for by time.
        bound: Whether events come with their ids, which encrypted fields need.
    """

    snapshots: bool
    by_version: bool
    by_time: bool
    bound: bool = False


@cache
def load_statement(schema: str, asked: Asked) -> str:
    """Return the statement that loads the streams of ``keys`` as far as ``limit`` events each."""
    found = _found(schema, asked)
    heads = select(
        found.c.place,
        found.c.begin.label("version"),
        literal(STREAM).label("kind"),
        found.c.reached.label("position"),
        cast(null(), Text).label("content"),
    )
    names = event_tables(schema).event_types
    types = select(
        literal(0, BigInteger),
        cast(names.c.schema_version, BigInteger),
        literal(TYPE),
        cast(names.c.id, BigInteger),
        names.c.name,
    ).where(names.c.name == func.any(bindparam("names", type_=ARRAY(Text))))
    after = func.coalesce(found.c.snapshot_version, found.c.begin)
    tail = _events(schema, asked, stream_id=found.c.id, after=after)
    events = select(
        found.c.place, tail.c.version, tail.c.type_id, tail.c.position, tail.c.content
    ).join_from(found, tail, true())
    parts: list[Select[Any]] = [heads, types, events]
    if asked.snapshots:
        states = select(
            found.c.place,
            found.c.snapshot_version,
            case((found.c.fits, SNAPSHOT), else_=MISFIT),
            found.c.snapshot_position,
            found.c.state,
        ).where(found.c.snapshot_version.is_not(None))
        parts.insert(2, states)
    return _compiled(union_all(*parts))


@cache
def further_statement(schema: str, asked: Asked) -> str:
    """Return the statement that reads on in one stream, behind the version ``after``."""
    streams = event_tables(schema).streams
    stream = select(streams.c.id).where(*_named(schema)).cte("stream_found")
    after = bindparam("after", type_=BigInteger)
    tail = _events(schema, asked, stream_id=stream.c.id, after=after)
    return _compiled(
        select(
            literal(1, BigInteger), tail.c.version, tail.c.type_id, tail.c.position, tail.c.content
        ).join_from(stream, tail, true())
    )


@cache
def types_statement(schema: str) -> str:
    """Return the statement that names types by their ``ids``."""
    names = event_tables(schema).event_types
    wanted = names.c.id == func.any(bindparam("ids", type_=ARRAY(Integer)))
    return _compiled(select(names.c.id, names.c.name, names.c.schema_version).where(wanted))


def _found(schema: str, asked: Asked) -> CTE:
    streams = event_tables(schema).streams
    wanted = (
        func.unnest(bindparam("keys", type_=ARRAY(Text)))
        .table_valued(column("key", Text), with_ordinality="place", name="wanted")
        .render_derived()
    )
    stream = (
        select(
            wanted.c.place,
            streams.c.id,
            streams.c.version.label("reached"),
            _begin(schema, asked).label("begin"),
        )
        .join_from(wanted, streams, streams.c.key == wanted.c.key)
        .where(streams.c.tenant == bindparam("tenant"), streams.c.category == bindparam("category"))
        .cte("stream_found")
    )
    if not asked.snapshots:
        return select(stream, cast(null(), BigInteger).label("snapshot_version")).cte("found")
    snapshot = _snapshot(schema, asked, stream)
    return (
        select(
            stream,
            snapshot.c.version.label("snapshot_version"),
            snapshot.c.position.label("snapshot_position"),
            snapshot.c.state,
            snapshot.c.fits,
        )
        .join_from(stream, snapshot, true(), isouter=True)
        .cte("found")
    )


def _begin(schema: str, asked: Asked) -> Any:  # noqa: ANN401 -- an expression
    """Return behind which version a load begins: compacted events count only for the past."""
    tables = event_tables(schema)
    streams, first = tables.streams, tables.all_events.alias("first")
    reached = []
    if asked.by_version:
        reached.append(streams.c.first_version <= _VERSION)
    if asked.by_time:
        reached.append(
            exists().where(
                first.c.stream_id == streams.c.id,
                first.c.version == streams.c.first_version,
                first.c.at <= _AT,
            )
        )
    begin = streams.c.first_version - 1
    return case((and_(streams.c.first_version > 1, *reached), begin), else_=0) if reached else begin


def _snapshot(schema: str, asked: Asked, stream: CTE) -> FromClause:
    tables = event_tables(schema)
    snapshots, its_event = tables.snapshots, tables.all_events.alias("its_event")
    # A restored database may lack events that a snapshot was made from.
    fits = exists().where(
        its_event.c.stream_id == snapshots.c.stream_id,
        its_event.c.version == snapshots.c.version,
        its_event.c.position == snapshots.c.position,
    )
    return (
        select(
            snapshots.c.version,
            snapshots.c.position,
            state_column(snapshots).label("state"),
            fits.label("fits"),
        )
        .where(
            snapshots.c.stream_id == stream.c.id,
            snapshots.c.aggregate == bindparam("aggregate", type_=Text),
            snapshots.c.fingerprint == bindparam("fingerprint", type_=LargeBinary),
            snapshots.c.version > stream.c.begin,
            *_until(snapshots, asked),
        )
        .order_by(snapshots.c.version.desc())
        .limit(1)
        .lateral("snapshot_found")
    )


def _events(schema: str, asked: Asked, *, stream_id: Any, after: Any) -> FromClause:  # noqa: ANN401
    events = event_tables(schema).all_events
    return (
        select(
            events.c.version,
            events.c.type_id,
            events.c.position,
            event_content(events, bound=asked.bound).label("content"),
        )
        .where(events.c.stream_id == stream_id, events.c.version > after, *_until(events, asked))
        .order_by(events.c.version)
        .limit(bindparam("limit", type_=BigInteger))
        .lateral("tail")
    )


def _until(table: Any, asked: Asked) -> list[Any]:  # noqa: ANN401 -- a table, and conditions
    version = [table.c.version <= _VERSION] if asked.by_version else []
    return version + ([table.c.at <= _AT] if asked.by_time else [])


def _named(schema: str) -> list[Any]:
    streams = event_tables(schema).streams
    return [streams.c[name] == bindparam(name) for name in ("tenant", "category", "key")]


def _compiled(statement: Select[Any] | CompoundSelect[Any]) -> str:
    """Return the statement as text in which only what a caller gives is a parameter."""
    inlined: Any = replacement_traverse(statement, {}, _inlined)
    return str(inlined.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True}))


def _inlined(element: Any, **_options: object) -> Any:  # noqa: ANN401 -- parts of a statement
    if not isinstance(element, BindParameter):
        return None
    if element.value is not None:
        return element.render_literal_execute()
    return bindparam(element.key, type_=element.type, required=False)
