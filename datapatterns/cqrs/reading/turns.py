"""Who looks next, of several that wait for the same: the rules, without threads or tasks.

A look answers whoever asked before it began. So while one is under way, all who come meanwhile
wait for the next one, and that is one for them all: however many wait, one connection is in use.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class Turn(Enum):
    """What to do for an answer."""

    LOOK = "look"
    """Look, for all who want it."""

    WAIT = "wait"
    """Somebody is looking."""

    ALONE = "alone"
    """The look that was to serve failed; look for yourself, and get an error of your own."""


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """What a look has seen.

    Attributes:
        number: Which look it was.
        rings: How often the bell had rung before it began.
    """

    value: T
    number: int
    rings: int


@dataclass(slots=True)
class Turns(Generic[T]):
    """Counts looks; for use by one thread at a time."""

    begun: int = 0
    ended: int = 0
    rings: int = 0
    under_way: bool = False
    latest: Seen[T] | None = None

    def join(self) -> int:
        """Return which look serves whoever comes now."""
        return self.begun + 1

    def take(self, wanted: int) -> "Seen[T] | Turn":
        """Return what look ``wanted`` or a later one has seen, or what to do for that."""
        if self.ended >= wanted:
            return self.latest or Turn.ALONE
        return Turn.WAIT if self.under_way else Turn.LOOK

    def begin(self) -> "Ticket":
        """Begin a look."""
        self.begun += 1
        self.under_way = True
        return Ticket(self.begun, self.rings)

    def succeed(self, ticket: "Ticket", value: T) -> Seen[T]:
        """End a look."""
        self.under_way = False
        self.ended = ticket.number
        self.latest = Seen(value, ticket.number, ticket.rings)
        return self.latest

    def fail(self, ticket: "Ticket") -> None:
        """End a look that has seen nothing but an error."""
        self.under_way = False
        self.ended = ticket.number
        self.latest = None

    def abandon(self) -> None:
        """End a look whose caller was told to stop; the next who wants it begins another."""
        self.under_way = False

    def news(self, since: Seen[T]) -> "Seen[T] | Turn":
        """Return what was seen after ``since``, or whether there is a reason to look."""
        if self.ended > since.number and self.latest is not None:
            return self.latest
        return Turn.LOOK if self.rings > since.rings else Turn.WAIT


@dataclass(frozen=True, slots=True)
class Ticket:
    """A look that has begun."""

    number: int
    rings: int
