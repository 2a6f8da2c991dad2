"""Tell who waits in this process that a page was committed in it, so that they look at once.

Nothing depends on it: a look that nobody rang for happens a moment later.
"""

import os
from threading import Lock
from typing import Final, Protocol
from weakref import WeakSet


class Listener(Protocol):
    """Somebody who waits for read models."""

    def rung(self) -> None:
        """Do what is to be done; from any thread, without waiting for anything."""
        ...


class _OfProcess:
    """Who listens in this process."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget who listens in the parent: in a forked child nobody gives back their locks."""
        self.lock = Lock()
        self.listeners: dict[tuple[str, str], WeakSet[Listener]] = {}


_HERE: Final = _OfProcess()

os.register_at_fork(after_in_child=_HERE.begin_anew)


def listen(schema: str, name: str, listener: Listener) -> None:
    """Have ``listener`` told of pages of the projection ``name`` for as long as it lives."""
    with _HERE.lock:
        _HERE.listeners.setdefault((schema, name), WeakSet()).add(listener)


def ring(schema: str, name: str) -> None:
    """Say that the projection ``name`` may have moved on, in whichever database and version."""
    with _HERE.lock:
        listeners = list(_HERE.listeners.get((schema, name), ()))
    for listener in listeners:
        listener.rung()
