"""How the library reports what it does, without choosing anybody's monitoring.

A pattern counts and times through an `Observer`; the application decides where that goes. Log
records go to loggers named after their module, with their values in ``extra``; the library
configures no handler. Neither ever holds a password, a row or a cached value.
"""

from typing import Protocol


class Observer(Protocol):
    """Receives counts and durations; called on hot paths, so it must be quick and never raise."""

    def count(self, name: str, amount: int = 1, /, **attributes: str) -> None:
        """Add ``amount`` to the counter ``name``."""
        ...

    def duration(self, name: str, seconds: float, /, **attributes: str) -> None:
        """Record that something took ``seconds``."""
        ...


class SilentObserver:
    """Forgets everything; what a layer uses unless it is given another observer."""

    def count(self, name: str, amount: int = 1, /, **attributes: str) -> None:
        """Do nothing."""

    def duration(self, name: str, seconds: float, /, **attributes: str) -> None:
        """Do nothing."""


class Observers:
    """Tells several observers the same.

    Args:
        observers: Whom to tell, in this order.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def count(self, name: str, amount: int = 1, /, **attributes: str) -> None:
        """Tell each of them."""
        for observer in self._observers:
            observer.count(name, amount, **attributes)

    def duration(self, name: str, seconds: float, /, **attributes: str) -> None:
        """Tell each of them."""
        for observer in self._observers:
            observer.duration(name, seconds, **attributes)


SILENT = SilentObserver()
"""The observer that forgets."""
