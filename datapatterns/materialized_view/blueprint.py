"""All that a view consists of in a database, as SQL that no longer depends on the code.

A migration writes a blueprint down, so that it does in a year what it does today; the catalogue
keeps it, so that what is there can be compared with what is declared.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final, Self

from sqlalchemy import ClauseElement
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import CompileError

from datapatterns.errors import ViewDefinitionError
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.strategy import Explanation, Strategy
from datapatterns.materialized_view.written_sql import canonical, renamed

# Not the driver's dialect: that doubles every %, and nothing halves them again here.
_DIALECT: Final = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]


class Need(StrEnum):
    """What a strategy needs to be true in the database, whatever the models say."""

    TOTAL = "total"
    """All that the query calls is the server's own and answers for every value."""
    INTEGER = "integer"
    """It is of a type of integers."""
    FIXED_SCALE = "fixed scale"
    """It is an integer, or a numeric with a declared precision."""
    IDENTICAL = "identical"
    """Equal values of it are the same."""
    NO_ZONE = "no zone"
    """It is no time with a zone, which would be compared by the session's settings."""
    DISTINGUISHABLE = "distinguishable"
    """A unique index tells its values apart, NULL included."""
    HASHABLE = "hashable"
    """Its values can be hashed."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A need, and the column that it is about.

    Attributes:
        table: As SQL writes it; empty for the table of what is stored, by the query for it.
        column: Its name; empty if the need is about the view's query.
        need: What must hold.
    """

    table: str
    column: str
    need: Need


@dataclass(frozen=True, slots=True)
class Source:
    """A table whose changes are applied, and the columns that matter.

    Attributes:
        table: As SQL writes it; without a schema, ``search_path`` finds it.
        columns: Their names.
    """

    table: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What a view consists of.

    Its SQL is on one line, however it was given. Migrations have written blueprints down: a field
    that is added needs a default.

    Attributes:
        columns: What it shows, by name.
        strategy: How its stored rows follow the tables.
        reason: Why so, for people.
        definition: The query.
        fresh: The query for all that is stored, its columns named ``stored``.
        stored: The columns of the stored table.
        key: Those by which stored rows are found; none for no index.
        key_is_unique: Whether there is one row for each key.
        shown: The query for what the view shows, of the stored table.
        current: The query for what the tables give now: of what is stored and what is pending.
            It may name ``pending_name(n)``, the pending changes of source n, and `MARKER`.
        sources: The tables whose pending changes ``current`` names.
        requirements: What must be true in the database for the strategy to be exact.
    """

    columns: tuple[str, ...]
    strategy: Strategy
    reason: str
    definition: str
    fresh: str
    stored: tuple[str, ...]
    key: tuple[str, ...]
    key_is_unique: bool
    shown: str
    current: str
    sources: tuple[Source, ...]
    requirements: tuple[Requirement, ...]

    def __post_init__(self) -> None:
        for name in WRITTEN:
            object.__setattr__(self, name, canonical(getattr(self, name)))

    @property
    def explanation(self) -> Explanation:
        """Return how the view is kept, and why."""
        return Explanation(self.strategy, self.reason)

    @property
    def digest(self) -> str:
        """Return a digest of what has to be the same for stored rows to be right."""
        parts = (*self.columns, self.definition, self.fresh, *self.stored)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def under(self, old: ViewNames, new: ViewNames) -> Self:
        """Return it for a view of other names in the same schema."""
        names = dict(zip(old.relations, new.relations, strict=True))
        return replace(
            self,
            definition=renamed(self.definition, old.schema, names),
            fresh=renamed(self.fresh, old.schema, names),
            shown=renamed(self.shown, old.schema, names),
            current=renamed(self.current, old.schema, names),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Return the blueprint that was stored."""
        return cls(
            columns=tuple(found["columns"]),
            strategy=Strategy(found["strategy"]),
            reason=found["reason"],
            definition=found["definition"],
            fresh=found["fresh"],
            stored=tuple(found["stored"]),
            key=tuple(found["key"]),
            key_is_unique=found["key_is_unique"],
            shown=found["shown"],
            current=found["current"],
            sources=tuple(Source(s["table"], tuple(s["columns"])) for s in found["sources"]),
            requirements=tuple(
                Requirement(r["table"], r["column"], Need(r["need"])) for r in found["requirements"]
            ),
        )


WRITTEN: Final = ("definition", "fresh", "shown", "current")
"""The fields of a blueprint that are SQL."""

MARKER: Final = "datapatterns_marker"
"""A relation of one row: ``seen``, whether pending changes say no more than that all may differ."""


def pending_name(number: int) -> str:
    """Return the name by which a blueprint calls the pending changes of a source."""
    return f"datapatterns_pending_{number}"


def as_sql(view: str, element: ClauseElement) -> str:
    """Return ``element`` as SQL without parameters.

    Raises:
        ViewDefinitionError: A value in it has no form in SQL.
    """
    try:
        compiled = element.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True})
    except CompileError as error:
        raise ViewDefinitionError(
            view, clause=f"a value without a form in SQL ({error})", advice="write it as SQL"
        ) from error
    return str(compiled)
