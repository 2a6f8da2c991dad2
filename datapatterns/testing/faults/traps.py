"""Something that a proxy waits for, to break one connection there and then."""

import threading
from enum import Enum

from datapatterns.testing.faults.asking import asks_for
from datapatterns.testing.faults.dialogues import Request

TRAP_SECONDS = 10.0
"""How long one waits for a trap unless told otherwise."""


class Moment(Enum):
    """When a trap breaks its connection."""

    REQUEST = "before the request reaches the server"
    REPLY = "when the server has answered the request"
    BYTES = "when the client has got some bytes of a reply"


class Trap:
    """Breaks one connection when what it was set for happens, and never again.

    Made by the methods of ``FaultProxy``.
    """

    def __init__(self, moment: Moment, what: str, *, bytes_left: int = 0) -> None:
        self.moment = moment
        self.what = what
        self.bytes_left = bytes_left
        self._fired = threading.Event()

    @property
    def has_fired(self) -> bool:
        """Whether it has broken its connection."""
        return self._fired.is_set()

    def wait(self, *, timeout_seconds: float = TRAP_SECONDS) -> None:
        """Return as soon as it has fired; with asyncio, call it in ``asyncio.to_thread``.

        Raises:
            TimeoutError: It hasn't, within ``timeout_seconds``.
        """
        if not self._fired.wait(timeout_seconds):
            raise TimeoutError(f"{self.what} did not come within {timeout_seconds:g} s")

    def fire(self) -> None:
        """Note that the connection is being broken."""
        self._fired.set()

    def is_set_for(self, request: Request) -> bool:
        """Whether it waits for this."""
        return self.moment is not Moment.BYTES and any(
            asks_for(asked, self.what) for asked in request.asks
        )
