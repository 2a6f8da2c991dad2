"""Let the tasks that wait for one read model share their looks at it, as threads do."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Engine

from datapatterns.cqrs.reading.turns import Seen, Ticket, Turn, Turns
from datapatterns.cqrs.running.bells import listen

T = TypeVar("T")


class AsyncSharedLooks(Generic[T]):
    """The looks of one event loop at one read model through one engine."""

    def __init__(self) -> None:
        # Nothing that lives on may hold the loop, or a closed one would stay for ever.
        self._loop = ref(asyncio.get_running_loop())
        self._waiting: set[asyncio.Future[None]] = set()
        self._turns: Turns[T] = Turns()

    def rung(self) -> None:
        """Let who waits look at once; from any thread."""
        loop = self._loop()
        if loop is not None:
            with suppress(RuntimeError):  # it is closed, so nobody waits in it
                loop.call_soon_threadsafe(self._rung)

    async def look(
        self, ask: Callable[[], Awaitable[T]], left: Callable[[], float]
    ) -> Seen[T] | None:
        """Return what a look that begins from now on sees; None if ``left`` has run out.

        Who has no time at all does not wait for another's look, but looks.
        """
        wanted, waited = self._turns.join(), False
        while (turn := self._turns.take(wanted)) is Turn.WAIT:
            if (seconds := left()) <= 0:
                if waited:
                    return None
                turn = Turn.ALONE
                break
            waited = True
            await self._change(seconds)
        if isinstance(turn, Seen):
            return turn
        if turn is Turn.ALONE:
            ended, rings = self._turns.ended, self._turns.rings
            return Seen(await ask(), ended, rings)
        return await self._look_for_all(ask, self._turns.begin())

    async def pause(self, since: Seen[T], seconds: float) -> Seen[T] | None:
        """Return what somebody else sees within ``seconds``; None if it is time to look."""
        time = asyncio.get_running_loop().time
        deadline = time() + seconds
        while (news := self._turns.news(since)) is Turn.WAIT:
            if (left := deadline - time()) <= 0:
                return None
            await self._change(left)
        return news if isinstance(news, Seen) else None

    async def _look_for_all(self, ask: Callable[[], Awaitable[T]], ticket: Ticket) -> Seen[T]:
        try:
            value = await ask()
        except BaseException as error:
            if isinstance(error, Exception):
                self._turns.fail(ticket)
            else:
                self._turns.abandon()  # cancelled: the others wait on
            self._tell()
            raise
        self._tell()
        return self._turns.succeed(ticket, value)

    async def _change(self, seconds: float) -> None:
        changed = asyncio.get_running_loop().create_future()
        self._waiting.add(changed)
        try:
            await asyncio.wait([changed], timeout=seconds)
        finally:
            self._waiting.discard(changed)

    def _rung(self) -> None:
        self._turns.rings += 1
        self._tell()

    def _tell(self) -> None:
        for changed in self._waiting:
            if not changed.done():
                changed.set_result(None)


_Looks = dict[Hashable, AsyncSharedLooks[Any]]
_SHARED: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, WeakKeyDictionary[Engine, _Looks]]] = (
    WeakKeyDictionary()
)
"""By loop: an engine may be used in one after the other."""


def shared_looks_async(
    engine: Engine, schema: str, name: str, *key: Hashable
) -> AsyncSharedLooks[Any]:
    """Return the looks that all tasks of this loop share who ask for the same."""
    of_loop = _SHARED.setdefault(asyncio.get_running_loop(), WeakKeyDictionary())
    looks = of_loop.setdefault(engine, {})
    whole = (schema, name, *key)
    if whole not in looks:
        looks[whole] = AsyncSharedLooks()
        listen(schema, name, looks[whole])
    return looks[whole]
