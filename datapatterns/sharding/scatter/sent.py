"""A statement compiled once for all shards: what the driver is given, and what rows become.

SQLAlchemy makes a cursor, a context and a result for each execution; to ask shards for columns
takes none of them. What types do to values, they do here, too.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy as copied
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

from psycopg import Connection as DriverConnection
from psycopg.adapt import PyFormat, Transformer
from psycopg.postgres import types as postgres_types
from psycopg.pq.abc import PGresult
from sqlalchemy import Dialect
from sqlalchemy.types import TypeEngine

from datapatterns.sharding.reaching.conversation import Query
from datapatterns.sharding.scatter.selected import AnySelect

Rows: TypeAlias = Sequence[Sequence[Any]]

_Convert: TypeAlias = Callable[[Any], Any] | None

_MISSING: Final = object()
_PLAIN: Final = frozenset(
    postgres_types[name].oid for name in ("bool", "bytea", "date", "int2", "int4", "int8", "uuid")
)


@dataclass(frozen=True, slots=True)
class _Value:
    """A parameter in the order of the SQL.

    Attributes:
        key: What the caller calls it.
        default: What it is if the caller says nothing.
        convert: What its type does to it.
    """

    key: str
    default: Any
    convert: _Convert


@dataclass(frozen=True, slots=True)
class SentStatement:
    """A statement for connections of one dialect.

    Attributes:
        sql: With ``$1``.
        values: Its parameters.
        types: Those of its columns.
        dialect: Whose types they are.
    """

    sql: bytes
    values: tuple[_Value, ...]
    types: tuple[TypeEngine[Any], ...]
    dialect: Dialect

    def lacks(self, values: Mapping[str, Any]) -> bool:
        """Return whether ``values`` lacks one that there is no default for."""
        return any(each.default is _MISSING and each.key not in values for each in self.values)

    def query(self, driver: DriverConnection[Any], values: Mapping[str, Any]) -> Query:
        """Return what is sent with ``values``."""
        found = [
            value if each.convert is None else each.convert(value)
            for each in self.values
            for value in (values.get(each.key, each.default),)
        ]
        transformer = Transformer(driver)
        params = transformer.dump_sequence(found, [PyFormat.AUTO] * len(found))
        return Query(self.sql, transformer.types or (), params, transformer.formats or ())

    def rows(self, driver: DriverConnection[Any], result: PGresult) -> "Received":
        """Return the rows of a result."""
        transformer = Transformer(driver)
        transformer.set_pgresult(result)
        rows = transformer.load_rows(0, result.ntuples, tuple)
        oids = [result.ftype(place) for place in range(result.nfields)]
        converts = [
            type_._cached_result_processor(self.dialect, oid)  # noqa: SLF001 -- there is no public name
            for type_, oid in zip(self.types, oids, strict=True)
        ]
        plain = frozenset(
            place
            for place, (oid, convert) in enumerate(zip(oids, converts, strict=True))
            if convert is None and oid in _PLAIN
        )
        if any(converts):
            rows = [
                tuple(
                    value if convert is None else convert(value)
                    for value, convert in zip(row, converts, strict=True)
                )
                for row in rows
            ]
        return Received(rows, plain)


@dataclass(frozen=True, slots=True)
class Received:
    """What came from a shard.

    Attributes:
        rows: As the types of its columns have it.
        plain: The columns of which Python compares all values but NULL as PostgreSQL does.
    """

    rows: Rows
    plain: frozenset[int]


def sent_statement(statement: AnySelect, dialect: Dialect) -> SentStatement | None:
    """Return ``statement`` as the driver is given it; None if its SQL depends on its values.

    Args:
        statement: It selects columns.
        dialect: Of an engine that has been connected.
    """
    compiled: Any = statement.compile(dialect=_numbered(dialect))
    if compiled.post_compile_params or compiled.literal_execute_params:
        return None
    if compiled.escaped_bind_names or compiled._render_postcompile:  # noqa: SLF001 -- there is no public name
        return None
    processors = compiled._bind_processors  # noqa: SLF001 -- as above
    binds = [compiled.binds[name] for name in compiled.positiontup or ()]
    if any(bind.callable for bind in binds):
        return None
    return SentStatement(
        compiled.string.encode(),
        tuple(
            _Value(bind.key, _MISSING if bind.required else bind.value, processors.get(name))
            for name, bind in zip(compiled.positiontup or (), binds, strict=True)
        ),
        tuple(column.type for column in compiled._result_columns),  # noqa: SLF001 -- as above
        dialect,
    )


@lru_cache(maxsize=64)
def _numbered(dialect: Dialect) -> Dialect:
    """Return a dialect like another one, whose SQL has ``$1`` in it."""
    found: Any = copied(dialect)
    found.paramstyle, found.positional = "numeric_dollar", True
    found.__dict__.pop("_type_memos", None)
    found.identifier_preparer = found.preparer(found)
    found.type_compiler_instance = found.type_compiler = found.type_compiler_cls(found)
    numbered: Dialect = found
    return numbered
