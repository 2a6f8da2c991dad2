"""Moves the read model on in a thread of this process."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Event, Thread

from datapatterns import ConflictError, DataLayer, DataPatternsError, UnavailableError
from datapatterns.cqrs import Projection

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 0.02
"""How long to wait for further events."""

PAUSE_SECONDS_MAX = 5.0
"""How long to wait before it is tried again what has failed."""


@asynccontextmanager
async def running(
    layer: DataLayer, projection: type[Projection], *, wanted: bool = True
) -> AsyncIterator[None]:
    """Run ``projection`` meanwhile, if it is wanted; a page under way is finished at the end."""
    stopping = Event()
    thread = Thread(target=_run, args=(layer, projection, stopping), name="projections")
    if wanted:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        if wanted:
            await asyncio.to_thread(thread.join)


def _run(layer: DataLayer, projection: type[Projection], stopping: Event) -> None:
    pause = 0.0
    while not stopping.wait(pause):
        try:
            done = layer.projections.run(layer.engine, projection, pages_max=10)
            pause = PAUSE_SECONDS if done.caught_up else 0.0
        except ConflictError:
            pause = PAUSE_SECONDS_MAX  # another process runs it, until it stops or dies
        except DataPatternsError as error:
            level = logging.WARNING if isinstance(error, UnavailableError) else logging.ERROR
            logger.log(level, "the read model does not move on: %s", error)
            pause = PAUSE_SECONDS_MAX
