"""What a query of a read model asks for, and what it gets."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypedDict, TypeVar

from datapatterns.cqrs.reading.tokens import Token, as_token
from datapatterns.errors import ReadModelBehindError
from datapatterns.event_sourcing.events import Position

T = TypeVar("T")

Stale: TypeAlias = Literal["refuse", "serve"]


class Asked(TypedDict, total=False):
    """How fresh an answer has to be, and what to do if it is not.

    Attributes:
        after: A token that it must show, or the position that a write has returned.
        max_staleness_seconds: How old the oldest event may be that it does not show.
        timeout_seconds: How long to wait for that; unless given, 5.
        stale: ``"refuse"`` to raise `ReadModelBehindError` when the time has passed, which is
            done unless given; ``"serve"`` to get the answer with its age.
    """

    after: Token | Position | None
    max_staleness_seconds: float | None
    timeout_seconds: float
    stale: Stale


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a read model says, and as of when.

    Attributes:
        value: What the question returned.
        token: Up to where the answer shows the log: all before, and nothing after unless the read
            model is split into segments, some of which may be further. Give it to the next query,
            and that will not go back behind this one.
        positions_behind: How much of the log it does not show, gaps of undone writes included.
            None if the events are on another server: that is not asked, for it may be away, so
            nobody knows. `Projections.status` asks it.
        seconds_behind: The age of the oldest event that it does not show; 0 if there is none. With
            the events on another server, for how long it has not been known to show all: at least
            that age, and infinite if it never was.
        parked: How many events before that were put aside, because they could not be applied: they
            do not show either.
        is_stale: It is older than was asked for; only with ``stale="serve"``.
    """

    value: T
    token: Token
    positions_behind: int | None
    seconds_behind: float
    parked: int
    is_stale: bool

    @property
    def position(self) -> Position:
        """Up to where the answer shows the log."""
        return self.token.position


@dataclass(frozen=True, slots=True)
class Age:
    """How a read model at some position looks beside its log.

    Attributes:
        newest: The last position in the log, as far as is known.
        seconds_behind: The age of the oldest event after the read model's position, or more.
        parked: How many events before it were put aside.
        is_seen: Whether the log itself was looked at, and not what a runner has seen of it.
    """

    newest: Position
    seconds_behind: float
    parked: int
    is_seen: bool = True

    def behind(self, position: Position) -> int | None:
        """Return how much of the log lies after ``position``; None if nobody knows.

        What a runner saw last would be too little as soon as the next event is appended.
        """
        return max(0, self.newest - position) if self.is_seen else None


@dataclass(frozen=True, slots=True)
class Demand:
    """How fresh an answer has to be.

    Raises:
        ValueError: ``max_staleness_seconds`` is negative or no number.
    """

    after: Token | None = None
    max_staleness_seconds: float | None = None

    def __post_init__(self) -> None:
        seconds = self.max_staleness_seconds
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"an answer cannot be at most {seconds} seconds old")

    def is_reached(self, position: Position) -> bool:
        """Return whether an answer at ``position`` shows the token."""
        return self.after is None or position >= self.after.position

    def is_met(self, position: Position, age: Age) -> bool:
        """Return whether an answer of this age is fresh enough."""
        limit = self.max_staleness_seconds
        return self.is_reached(position) and (limit is None or age.seconds_behind <= limit)

    def goal(self, position: Position | None, age: Age) -> Token:
        """Return what to wait for before another attempt is worth it."""
        if self.after is not None and (position is None or not self.is_reached(position)):
            return self.after
        # What is newer than the newest of now is younger than the wait will have taken.
        return Token(age.newest)


@dataclass(frozen=True, slots=True)
class Missed:
    """An attempt that gave no answer, for the read model is not far enough.

    Attributes:
        position: How far it is; None if it is not there or not whole.
        goal: How far it should be for another attempt.
    """

    projection: str
    position: Position | None
    goal: Token

    @property
    def has_reached_goal(self) -> bool:
        """Whether it is as far as it should be, but too old for all that is known."""
        return self.position is not None and self.position >= self.goal.position

    def error(self, detail: str | None = None, reason: str = "late") -> ReadModelBehindError:
        """Return what to raise if there is no other attempt."""
        return ReadModelBehindError(
            self.projection,
            position=self.position,
            token=self.goal.position,
            stopped_by=detail,
            reason=reason,
        )


Attempted: TypeAlias = Answer[T] | Missed


def demanded(asked: Asked) -> Demand:
    """Return how fresh the answer has to be."""
    after = asked.get("after")
    return Demand(None if after is None else as_token(after), asked.get("max_staleness_seconds"))
