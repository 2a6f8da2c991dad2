"""The statements of a projection in SQL for given tables: built once, looked at, then only run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Column,
    Delete,
    Executable,
    FromClause,
    Insert,
    MetaData,
    Table,
    Update,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import CompileError
from sqlalchemy.sql.functions import FunctionElement, next_value
from sqlalchemy.sql.visitors import ExternallyTraversible, iterate

from datapatterns.cqrs.set_definition import SetProjection
from datapatterns.cqrs.tables.read_model import ReadModel, ReadModels, read_models_of
from datapatterns.cqrs.tables.set_events import (
    AFTER,
    END,
    GIVEN,
    MASK,
    SHARD,
    TYPES,
    events_of_range,
)
from datapatterns.errors import ProjectionDefinitionError

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own

_OF_RANGE: Final = frozenset({AFTER, END, TYPES, MASK, SHARD, GIVEN})
_OTHER_EACH_TIME: Final = frozenset(
    {
        "clock_timestamp",
        "current_date",
        "current_time",
        "current_timestamp",
        "gen_random_uuid",
        "localtime",
        "localtimestamp",
        "next_value",
        "nextval",
        "now",
        "random",
        "statement_timestamp",
        "timeofday",
        "transaction_timestamp",
        "uuid_generate_v4",
        "uuidv7",
    }
)
"""Functions that give a rebuild other rows than the first run."""


@dataclass(frozen=True, slots=True)
class BuiltStatement:
    """A statement, and which parameters of a range it has."""

    statement: Executable
    parameters: frozenset[str]


def statements_for(
    projection: type[SetProjection], models: ReadModels, schema: str, *, split: bool
) -> tuple[BuiltStatement, ...]:
    """Return what ``projection`` runs for each range, writing the tables of ``models``.

    Raises:
        ProjectionDefinitionError: It cannot be asked, writes other tables, names those of its
            mapped classes, or is not the same each time.
    """
    return statements_over(projection, models, events_of_range(schema, split=split))


def statements_over(
    projection: type[SetProjection], models: ReadModels, events: FromClause
) -> tuple[BuiltStatement, ...]:
    """Return what ``projection`` runs over ``events``, which have the columns that it is promised.

    Raises:
        ProjectionDefinitionError: As `statements_for`.
    """
    return _built(projection, tuple(models.items()), events)


@cache
def _built(
    projection: type[SetProjection],
    models: tuple[tuple[type, ReadModel], ...],
    events: FromClause,
) -> tuple[BuiltStatement, ...]:
    tables = MappingProxyType({into: _target(model) for into, model in models})
    try:
        given = projection().statements(events, tables)
        statements = [given] if isinstance(given, Executable) else list(given)
    except Exception as error:  # the application's code may raise anything
        raise ProjectionDefinitionError(
            projection.name, f"its statements cannot be made: {type(error).__name__}: {error}"
        ) from error
    if not statements:
        raise ProjectionDefinitionError(projection.name, "it has no statements; return one or more")
    mapped = {model.table for model in read_models_of(projection).values()}
    return tuple(_checked(projection.name, one, tables, mapped) for one in statements)


def _target(model: ReadModel) -> Table[Any]:
    # Never the class's own, even while that is the one to write: a statement that names it would
    # go wrong only later, when another version is built beside it.
    columns = [
        Column(
            field.column.name,
            field.column.type,
            primary_key=field.column.primary_key,
            autoincrement=False,
            default=field.initial(),
        )
        for field in model.fields
    ]
    return Table(model.table.name, MetaData(), *columns, schema=model.table.schema)


def _checked(
    name: str, statement: object, tables: Mapping[type, Table[Any]], mapped: set[Table[Any]]
) -> BuiltStatement:
    if not isinstance(statement, Insert | Update | Delete):
        raise ProjectionDefinitionError(
            name,
            f"it returns a {type(statement).__name__}; return insert(), update() or delete() of its"
            " tables, whose target can be told",
        )
    for part in _parts(statement):
        if isinstance(part, Insert | Update | Delete) and part.table not in tables.values():
            raise ProjectionDefinitionError(
                name,
                f"it writes {part.table} by itself; write what it is given: tables[...], which is"
                " another table while a version is built",
            )
        if part in mapped:
            raise ProjectionDefinitionError(
                name,
                f"it names {part} by its mapped class; use tables[...], which is another table"
                " while a version is built",
            )
        if isinstance(part, next_value) or (
            isinstance(part, FunctionElement) and _function(part) in _OTHER_EACH_TIME
        ):
            raise ProjectionDefinitionError(
                name,
                f"it calls {_function(part)}(), so a rebuild would give other rows; take times and"
                " ids from the event, such as events.c.recorded_at",
            )
        if isinstance(part, BindParameter) and part.required and part.key not in _OF_RANGE:
            raise ProjectionDefinitionError(
                name,
                f"it has a parameter {part.key!r}, for which nobody gives a value; use literal()",
            )
    try:
        parameters = statement.compile(dialect=_DIALECT).params.keys()
    except CompileError as error:
        raise ProjectionDefinitionError(
            name, f"a statement cannot be written as SQL: {error}"
        ) from error
    return BuiltStatement(statement, frozenset(parameters & _OF_RANGE))


def _parts(statement: ExternallyTraversible) -> Iterator[Any]:
    """Yield all that a statement is made of, what it names by a column only among it."""
    seen, waiting = {id(statement)}, [statement]
    while waiting:
        for part in iterate(waiting.pop()):
            yield part
            source = getattr(part, "table", None)
            if isinstance(source, FromClause) and id(source) not in seen:
                seen.add(id(source))
                waiting.append(source)


def _function(part: Any) -> str:  # noqa: ANN401 -- one of several classes
    return str(getattr(part, "name", type(part).__name__)).lower()
