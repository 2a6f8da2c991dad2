"""What was declared beside the tables of a MetaData, by the library's schema that it lives in."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import MetaData


class Declarations(Protocol):
    """All of one kind that live in one schema."""

    @property
    def declared(self) -> Sequence[Any]:
        """They, one by one."""

    @property
    def schema(self) -> str:
        """The library's schema."""


D = TypeVar("D", bound=Declarations)


class Register(Generic[D]):
    """Keeps what was declared where Alembic finds it: in the MetaData that it compares.

    Args:
        key: Where in ``MetaData.info``.
        kind: What holds all of one schema, made of them and the schema's name.
    """

    def __init__(self, key: str, kind: Callable[[tuple[Any, ...], str], D]) -> None:
        self._key = key
        self._kind = kind

    def add(self, metadata: MetaData, given: D | Iterable[Any], schema: str) -> None:
        """Put what is given in the place of what was there for its schema."""
        found = self._kind(tuple(given), schema) if isinstance(given, Iterable) else given
        metadata.info.setdefault(self._key, {})[found.schema] = found

    def of(self, metadata: MetaData | Sequence[MetaData] | None) -> list[D]:
        """Return what was added, that of one schema together."""
        given = [metadata] if isinstance(metadata, MetaData) else metadata or []
        by_schema: dict[str, list[Any]] = {}
        for each in given:
            for schema, found in each.info.get(self._key, {}).items():
                by_schema.setdefault(schema, []).extend(found.declared)
        return [self._kind(tuple(found), schema) for schema, found in by_schema.items()]
