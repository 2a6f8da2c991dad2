"""An event loop in a thread of its own, for the asynchronous tasks of an explorer."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Starts when it is first needed; all engines and clients of asynchronous tasks live in it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        """Return the running loop."""
        if self._loop is None:
            started = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(started,), name="explorer's event loop", daemon=True
            )
            self._thread.start()
            started.wait()
        assert self._loop is not None
        return self._loop

    @property
    def ident(self) -> int | None:
        """The number of its thread, if it runs."""
        return self._thread.ident if self._thread else None

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there, and return what it returns.

        Raises:
            RuntimeError: It is called there, and would wait for itself.
        """
        if threading.get_ident() == self.ident:
            coroutine.close()
            raise RuntimeError(
                "this would block the explorer's event loop: make engines and clients, and "
                "explore, outside of coroutine tasks"
            )
        return asyncio.run_coroutine_threadsafe(coroutine, self.get()).result()

    def close(self) -> None:
        """Stop it; what still runs in it, is cancelled."""
        if self._loop is None or self._thread is None or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop = self._thread = self._stop = None

    def _run(self, started: threading.Event) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        started.set()
        await self._stop.wait()
