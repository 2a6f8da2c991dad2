"""What a proxy understands of a conversation between a client and its server."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class UnknownProtocolError(Exception):
    """These bytes are not of the protocol that the conversation began with."""


@dataclass(frozen=True, slots=True)
class Request:
    """One whole message from the client.

    Attributes:
        data: What goes on to the server.
        number: Counts what the client asks for, from 1; None for messages without an answer of
            their own.
        asks: The SQL statements, or the command, in one line each.
        answer: What the proxy answers in the server's place.
    """

    data: bytes
    number: int | None = None
    asks: Sequence[str] = ()
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole message from the server.

    Attributes:
        data: What goes on to the client.
        completes: The number of the request of which this says that it was carried out, or failed.
        ends: The server has nothing more to say about the requests up to this number.
    """

    data: bytes
    completes: int | None = None
    ends: int | None = None


class Dialogue(Protocol):
    """Cuts the two streams of one connection into messages, and knows which answers which."""

    def requests(self, data: bytes) -> list[Request]:
        """Return what is complete now that the client has sent ``data``, too."""
        ...

    def replies(self, data: bytes) -> list[Reply]:
        """Return what is complete now that the server has sent ``data``, too."""
        ...
