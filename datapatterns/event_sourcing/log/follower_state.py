"""What a follower of the log asks and knows, whoever drives it: a thread or a task."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from sqlalchemy import Connection

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.log.filtering import EVERYTHING, LogFilter
from datapatterns.event_sourcing.log.following_flow import Begin, Known, Life, Pace, Read
from datapatterns.event_sourcing.log.high_water import read_hint
from datapatterns.event_sourcing.log.losses import Losses, Unanswered
from datapatterns.event_sourcing.log.same_server import SameServer, life_of
from datapatterns.event_sourcing.recorded import LogPage
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import looking, reading

Start: TypeAlias = Position | Callable[[Connection], Position]
"""Where to begin: a position, or what reads it from where it is kept."""

AnyEngine = TypeVar("AnyEngine")
AnySignal = TypeVar("AnySignal", bound="SignalState[Any]")


@dataclass(slots=True, eq=False)
class SignalState(Generic[AnyEngine]):
    """What a signal knows of the log, and where it looks."""

    store: EventStore
    engine: AnyEngine
    published: bool = field(default=False, kw_only=True)
    clock: Clock = field(default=SYSTEM_CLOCK, kw_only=True, repr=False)
    _known: Known = field(default_factory=Known, init=False, repr=False)

    @property
    def wakes(self) -> int:
        """How often somebody was woken; remember it before reading."""
        return self._known.wakes

    def forget(self) -> None:
        """Know nothing any more: the connection was lost, maybe in a crash."""
        self._known.forget()

    @property
    def life(self) -> Life | None:
        """In which life of the server somebody looked last; None if nobody did."""
        return self._known.life

    def _sight(self, conn: Connection) -> tuple[Position, Life]:
        hint = read_hint(conn, schema=self.store.schema, published=self.published)
        return hint, life_of(conn, self._known.life)


@dataclass(slots=True)
class FollowerState(Generic[AnyEngine, AnySignal]):
    """What a follower has been told, and how it takes what the database answers."""

    store: EventStore
    engine: AnyEngine
    after: Start = START
    limit: int = field(default=500, kw_only=True)
    matching: LogFilter = field(default=EVERYTHING, kw_only=True)
    published: bool = field(default=False, kw_only=True)
    pace: Pace = field(default_factory=Pace, kw_only=True)
    signal: AnySignal | None = field(default=None, kw_only=True)
    clock: Clock = field(default=SYSTEM_CLOCK, kw_only=True, repr=False)
    is_stopped: bool = field(default=False, init=False)
    _signal: AnySignal = field(init=False, repr=False)
    _wakes: int = field(default=0, init=False, repr=False)
    _losses: Losses = field(default_factory=Losses, init=False, repr=False)
    _server: SameServer = field(default_factory=SameServer, init=False, repr=False)
    _looked_at: SameServer = field(default_factory=SameServer, init=False, repr=False)

    def _answer_on(self, conn: Connection, step: Begin | Read) -> Position | LogPage | None:
        if isinstance(step, Begin):
            with reading(conn):  # the application's code
                self._server.forget()
                self._server.answers(conn)
                return begin_at(conn, self.after, step.seen)
        with looking(conn):
            if not self._server.answers(conn):  # the pool has hidden it
                self._signal.forget()
                return None
            page = self.store.read_log(
                conn,
                step.after,
                limit=self.limit,
                matching=self.matching,
                published=self.published,
            )
        self._losses.end()  # not before: whoever can ask, but never read, is to give up
        return page

    def _looked(self, drawn: Position) -> Position | None:
        """Return what was ``drawn``, or None if a pool has hidden a crash from who looked."""
        life = self._signal.life
        # Others may look where they do not read: at the primary, say, for those at a standby.
        server = self._server if self._signal.engine is self.engine else self._looked_at
        if life is None or server.lives(life):
            return drawn
        self._signal.forget()
        return None

    def _can_go_on(self, error: Unanswered) -> bool:
        """Return whether to begin anew, knowing nothing any more."""
        can = self._losses.can_go_on(
            error,
            "follower of the log",
            seconds_max=self.pace.lost_seconds_max,
            clock=self.clock,
        )
        if can:
            self._signal.forget()
        return can


def begin_at(conn: Connection, after: Start, seen: Position | None) -> Position:
    """Return where to begin, or to begin again after the last event ``seen``."""
    if callable(after):
        return after(conn)
    return after if seen is None else max(after, seen)
