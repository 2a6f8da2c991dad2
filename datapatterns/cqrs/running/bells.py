"""Tell who waits in this process that a page was committed in it, so that they look at once.

Nothing depends on it: a look that nobody rang for happens a moment later.
"""

from threading import Lock
from typing import Final, Protocol
from weakref import WeakSet


class Listener(Protocol):
    """Somebody who waits for read models."""

    def rung(self) -> None:
        """Do what is to be done; from any thread, without waiting for anything."""
        ...


_LOCK: Final = Lock()
_LISTENERS: Final[dict[tuple[str, str], WeakSet[Listener]]] = {}


def listen(schema: str, name: str, listener: Listener) -> None:
    """Have ``listener`` told of pages of the projection ``name`` for as long as it lives."""
    with _LOCK:
        _LISTENERS.setdefault((schema, name), WeakSet()).add(listener)


def ring(schema: str, name: str) -> None:
    """Say that the projection ``name`` may have moved on, in whichever database and version."""
    with _LOCK:
        listeners = list(_LISTENERS.get((schema, name), ()))
    for listener in listeners:
        listener.rung()
