"""Audit in a thread what is loaded in tasks: an audit blocks, and its loader belongs to a loop."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import Event
from typing import Any, TypeVar

from datapatterns.cache_aside.auditing import LoadKeys
from datapatterns.cache_aside.keys import Key

R = TypeVar("R")
T = TypeVar("T")

_LOOK_SECONDS = 0.1


async def in_a_thread(
    audit: Callable[[LoadKeys[T]], R],
    load: Callable[[Sequence[Key]], Coroutine[Any, Any, Mapping[Key, T]]],
) -> R:
    """Return what ``audit`` returns, given a function that loads keys in tasks of this loop.

    Who is cancelled meanwhile waits until the thread has noticed, which takes a moment.
    """
    loop, given_up = asyncio.get_running_loop(), Event()
    loads: set[asyncio.Task[Mapping[Key, T]]] = set()

    async def load_here(keys: Sequence[Key]) -> Mapping[Key, T]:
        task = loop.create_task(load(keys))
        loads.add(task)
        return await task

    def load_keys(keys: Sequence[Key]) -> Mapping[Key, T]:
        loading = asyncio.run_coroutine_threadsafe(load_here(keys), loop)
        while True:
            try:
                return loading.result(_LOOK_SECONDS)
            except FutureTimeoutError:
                # The loader's own is raised as well. A loop that has ended would never answer.
                if loading.done() or given_up.is_set():
                    raise

    auditing = asyncio.ensure_future(asyncio.to_thread(audit, load_keys))
    try:
        return await asyncio.shield(auditing)
    finally:
        # Neither the thread nor a connection is left to whoever goes on.
        given_up.set()
        for task in loads:
            task.cancel()
        await asyncio.wait([auditing, *loads])
        if not auditing.cancelled():
            auditing.exception()  # nobody else may ask for it
