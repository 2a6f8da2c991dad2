"""Read your own writes: let a task wait until a read model shows a position of the log."""

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapatterns.clock import Clock
from datapatterns.cqrs.reading.looking import read_surroundings
from datapatterns.cqrs.reading.sharing_async import shared_looks_async
from datapatterns.cqrs.reading.sights import Awaited, Sight, Surroundings
from datapatterns.cqrs.reading.waiting_flow import Explain, Look, Pause, Step, waiting
from datapatterns.event_sourcing.events import Position

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


@dataclass(frozen=True, slots=True)
class AsyncWait:
    """One task's wait, whose looks are shared with others that wait for the same.

    Attributes:
        schema: Where the checkpoints are.
        look: Tells how far the read model is, and holds nothing when it has.
        place: Where it is, if not in the database.
        clock: Tells how much time is left; the loop's own lets it pass.
    """

    engine: "AsyncEngine"
    schema: str
    awaited: Awaited
    look: Callable[[], Awaitable[Sight]]
    place: Hashable
    clock: Clock

    async def run(self, timeout_seconds: float) -> Position:
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
                answer = await self._take(step, deadline)
        except StopIteration as done:
            return Position(done.value)

    async def _take(self, step: Step, deadline: float) -> object:
        def left() -> float:
            return deadline - self.clock.monotonic()

        engine, name = self.engine.sync_engine, self.awaited.projection.name
        sights = shared_looks_async(engine, self.schema, name, self.awaited.kind, self.place)
        match step:
            case Look():
                return await sights.look(self.look, left)
            case Pause(since, seconds):
                return await sights.pause(since, seconds)
            case Explain():
                around = shared_looks_async(engine, self.schema, name, "surroundings")
                seen = await around.look(self._surroundings, left)
                return None if seen is None else seen.value

    async def _surroundings(self) -> Surroundings:
        async with self.engine.connect() as conn:  # and back to the pool
            projection = self.awaited.projection
            return await conn.run_sync(read_surroundings, self.schema, projection)
