"""Read your own writes: let a thread wait until a read model shows a position of the log."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from sqlalchemy import Engine

from datapatterns.clock import Clock
from datapatterns.cqrs.reading.looking import read_surroundings
from datapatterns.cqrs.reading.sharing import shared_looks
from datapatterns.cqrs.reading.sights import Awaited, Sight, Surroundings
from datapatterns.cqrs.reading.waiting_flow import Explain, Look, Pause, Step, waiting
from datapatterns.event_sourcing.events import Position


@dataclass(frozen=True, slots=True)
class Wait:
    """One thread's wait, whose looks are shared with others that wait for the same.

    Attributes:
        schema: Where the checkpoints are.
        look: Tells how far the read model is, and holds nothing when it has.
        place: Where it is, if not in the database.
    """

    engine: Engine
    schema: str
    awaited: Awaited
    look: Callable[[], Sight]
    place: Hashable
    clock: Clock

    def run(self, timeout_seconds: float) -> Position:
        """Return how far the read model is, once it shows what is awaited.

        Raises:
            ForeignTokenError: It will never do so, for the token is of another log.
            ReadModelBehindError: It does not in time, or cannot.
        """
        deadline = self.clock.monotonic() + timeout_seconds
        steps = waiting(self.awaited, timeout_seconds, self.clock.monotonic)
        answer: object = None
        try:
            while True:
                step = steps.send(answer)
                answer = self._take(step, deadline)
        except StopIteration as done:
            return Position(done.value)

    def _take(self, step: Step, deadline: float) -> object:
        def left() -> float:
            return deadline - self.clock.monotonic()

        name = self.awaited.projection.name
        sights = shared_looks(self.engine, self.schema, name, self.awaited.kind, self.place)
        match step:
            case Look():
                return sights.look(self.look, left)
            case Pause(since, seconds):
                return sights.pause(since, seconds, self.clock)
            case Explain():
                around = shared_looks(self.engine, self.schema, name, "surroundings")
                seen = around.look(self._surroundings, left)
                return None if seen is None else seen.value

    def _surroundings(self) -> Surroundings:
        with self.engine.connect() as conn:  # and back to the pool, where a runner may wait for it
            return read_surroundings(conn, self.schema, self.awaited.projection)
