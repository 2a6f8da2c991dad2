"""What a check of determinism found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datapatterns.event_sourcing.events import Position


@dataclass(frozen=True, slots=True)
class Unsteady:
    """The first event after which a row, or a place in Redis, was not the same the second time.

    Attributes:
        trial: How the same events were folded the second time: ``again``, ``in smaller pages``,
            or ``in another process``, whose hashes of text are others.
        key: The primary key's columns; in Redis kind, structure and field.
        first: What came of it; None if there was no row.
        second: What came of it the second time.
        position: The event's; None if statements made the row, whose events nobody can tell.
        event_type: The event's.
        table: The table's name; None in Redis.
    """

    trial: str
    key: tuple[Any, ...]
    first: Mapping[str, Any] | None
    second: Mapping[str, Any] | None
    position: Position | None = None
    event_type: str | None = None
    table: str | None = None


@dataclass(frozen=True, slots=True)
class Determinism:
    """What came of folding all events more than once.

    Attributes:
        position: Up to where the log was folded, unless something was found before.
        events: How many.
        unsteady: The first that was found; None if all was the same.
        impure: What methods asked of the clock or of chance, and where, whatever came of it.
        untried: Why nothing was folded in another process; None if it was.
        seconds: How long it took.
    """

    position: Position
    events: int
    unsteady: Unsteady | None = None
    impure: tuple[str, ...] = ()
    untried: str | None = None
    seconds: float = 0.0

    @property
    def steady(self) -> bool:
        """Whether all was the same, and nothing was asked of the clock or of chance."""
        return self.unsteady is None and not self.impure
