"""How far something has come that goes through the log: a bar, or else a note now and then."""

import time
from typing import TYPE_CHECKING

from datapatterns_cli.invocation import Invocation

if TYPE_CHECKING:
    from datapatterns.cqrs import ProjectionProgress
    from datapatterns_cli.output import Advance

_NOTE_SECONDS = 5.0


class Told:
    """Tells how far it is: a bar on a terminal, or else a note now and then."""

    def __init__(
        self,
        invocation: Invocation,
        name: str,
        position: int,
        until: int,
        advance: "Advance",
    ) -> None:
        self._invocation = invocation
        self._name = name
        self._first = self._position = position
        self._until = until
        self._advance = advance
        self._began = self._noted = time.monotonic()

    def page(self, done: "ProjectionProgress") -> None:
        """Tell of another page."""
        self._advance(max(0, done.position - self._position))
        self._position = max(self._position, done.position)
        now = time.monotonic()
        if now - self._noted < _NOTE_SECONDS or self._invocation.output.shows_progress:
            return
        self._noted = now
        rate = (self._position - self._first) / (now - self._began)
        left = (self._until - self._position) / rate if rate else float("inf")
        self._invocation.output.note(
            f"{self._name}: {self._position:,} of {self._until:,},"
            f" {rate:,.0f}/s, {left:,.0f} s left"
        )
