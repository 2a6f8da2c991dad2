"""Whether a table can have an index table, decided from what PostgreSQL's catalog says of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_EXACT_TYPES = frozenset(
    {
        *("int2", "int4", "int8", "oid", "bool", "bytea", "uuid", "text", "varchar"),
        *("date", "time", "timestamp", "timestamptz"),
    }
)
"""Types of which equal values are the same value; of 1.0 and 1.00 this isn't true."""


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What the catalog says of a base table."""

    kind: str
    persistence: str
    in_hierarchy: bool
    row_security: bool
    subscribed: bool
    primary_key: Sequence[str]
    primary_key_deferrable: bool
    virtual_columns: Sequence[str]


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """What the catalog says of a column of the guard view.

    Attributes:
        name: The column.
        type_sql: Its type, as SQL.
        type_name: The type's own name; that of the type beneath a domain.
        is_enum: Whether it is an enumeration.
        collation_sql: Its collation, as SQL; None if it has none.
        deterministic: Whether equal strings are the same string.
    """

    name: str
    type_sql: str
    type_name: str
    is_enum: bool
    collation_sql: str | None
    deterministic: bool

    @property
    def loosely_equal(self) -> bool:
        """Whether two equal values may differ."""
        return not self.deterministic or not (self.is_enum or self.type_name in _EXACT_TYPES)


def table_problems(
    facts: TableFacts,
    *,
    primary_key: Sequence[str],
    used_columns: Iterable[str],
    mode: str = "local",
) -> Iterator[str]:
    """Yield why a table of ``facts`` can't have an index of that mode, each with the way out.

    What would be missed behind the writers, the change log says itself.
    """
    if mode != "async":
        yield from _kind_problems(facts)
    if facts.row_security:
        yield (
            "its table has row-level security, which index rows would bypass; look its rows up"
            " by an ordinary index"
        )
    if facts.subscribed:
        yield "rows applied by logical replication fire no statement trigger; unsubscribe it"
    if sorted(facts.primary_key) != sorted(primary_key):
        yield (
            f"the primary key is declared as {list(primary_key)} but is"
            f" {list(facts.primary_key)} in the database; make them agree"
        )
    if facts.primary_key_deferrable:
        yield "a deferrable primary key may be held twice for a while; make it not deferrable"
    if virtual := sorted(set(facts.virtual_columns) & set(used_columns)):
        yield f"triggers can't see the virtual generated columns {virtual}; make them STORED"


def _kind_problems(facts: TableFacts) -> Iterator[str]:
    if facts.kind == "p" or facts.in_hierarchy:
        yield (
            "a statement fires the triggers of the table it names only, and a partition that is"
            " attached later has none, so partitioned and inherited tables can't have an index"
            " table of mode 'local'; an index of a partitioned table that isn't unique can be"
            " declared with mode='async'"
        )
    elif facts.kind != "r":
        yield "only a table can have an index table; declare it on the table underneath"
    if facts.persistence == "u":
        yield "a crash empties an unlogged table behind its triggers; make it a logged one"
    if facts.persistence == "t":
        yield "a temporary table ends with its session; declare the index on a lasting table"


def column_problems(facts: ColumnFacts) -> Iterator[str]:
    """Yield why a column of ``facts`` can't be part of a key."""
    if facts.type_name == "citext":
        yield f"{facts.name} is of type citext; index lower() of a text column"
    if not facts.deterministic:
        yield (
            f"{facts.name} has a collation under which different strings are equal; index"
            " lower() of it, or give it a deterministic collation"
        )
