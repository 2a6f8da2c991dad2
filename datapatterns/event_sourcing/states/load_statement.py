"""The statement that loads streams: the latest fitting snapshot of each, and what followed it.

One statement, so one view of the database. Its rows, types first and events last, have five
columns, whatever they hold: each column costs as much as decoding a third of an event.

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
    BigInteger,
    BindParameter,
    Boolean,
    Integer,
    LargeBinary,
    Text,
    bindparam,
    column,
    func,
    literal,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql.visitors import replacement_traverse
from sqlalchemy.types import TypeEngine

from datapatterns.event_sourcing.content.contents import event_content
from datapatterns.event_sourcing.schema import event_tables

STREAM: Final = -1
SNAPSHOT: Final = -2
MISFIT: Final = -3
TYPE: Final = -4

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own
_MOMENT: Final = TIMESTAMP(timezone=True)
_TAKEN: Final[dict[str, TypeEngine[Any]]] = {
    "tenant": Text(),
    "category": Text(),
    "keys": ARRAY(Text),
    "names": ARRAY(Text),
    "aggregate": Text(),
    "fingerprint": LargeBinary(),
    "versions": ARRAY(BigInteger),
    "at": _MOMENT,
    "limit": BigInteger(),
    "bound": Boolean(),
}
"""What `load_streams` takes, in its order."""

_ROW: Final = (
    column("place", BigInteger),
    column("version", BigInteger),
    column("kind", Integer),
    column("position", BigInteger),
    column("content", Text),
)


class Further(NamedTuple):
    """How a load reads on: each way is a statement of its own.

    Attributes:
        by_time: Whether the past is asked for by time.
        bound: Whether events come with their ids, which encrypted fields need.
    """

    by_time: bool
    bound: bool


@cache
def load_statement(schema: str) -> str:
    """Return the statement that loads the streams of ``keys`` as far as ``limit`` events each.

    The work is done by a function, as its plans outlive a ROLLBACK; what the driver has prepared
    does not.
    """
    function = event_tables(schema).function(
        "load_streams", *(bindparam(name, type_=type_) for name, type_ in _TAKEN.items())
    )
    return _compiled(select(*_ROW).select_from(function.table_valued(*_ROW)))


@cache
def further_statement(schema: str, how: Further) -> str:
    """Return the statement that reads on in one stream, from ``after`` to ``version``."""
    tables = event_tables(schema)
    streams, events = tables.streams, tables.all_events
    named = [streams.c[name] == bindparam(name) for name in ("tenant", "category", "key")]
    stream = select(streams.c.id).where(*named).cte("stream_found")
    tail = (
        select(
            events.c.version,
            events.c.type_id,
            events.c.position,
            event_content(events, bound=how.bound).label("content"),
        )
        .where(
            events.c.stream_id == stream.c.id,
            events.c.version > bindparam("after", type_=BigInteger),
            events.c.version <= bindparam("version", type_=BigInteger),
            *([events.c.at <= bindparam("at", type_=_MOMENT)] if how.by_time else []),
        )
        .order_by(events.c.version)
        .limit(bindparam("limit", type_=BigInteger))
        .lateral("tail")
    )
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


def _compiled(statement: Any) -> str:  # noqa: ANN401 -- a select of whatever columns
    """Return the statement as text in which only what a caller gives is a parameter."""
    inlined: Any = replacement_traverse(statement, {}, _inlined)
    return str(inlined.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True}))


def _inlined(element: Any, **_options: object) -> Any:  # noqa: ANN401 -- parts of a statement
    if not isinstance(element, BindParameter):
        return None
    if element.value is not None:
        return element.render_literal_execute()
    return bindparam(element.key, type_=element.type, required=False)
