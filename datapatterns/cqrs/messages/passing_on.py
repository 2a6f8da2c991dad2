"""One step of a relay, without a database or a broker: what is tried next, and what came of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

FAILURES_MAX: Final = 10
"""After so many failures in a row the step ends: it is not the messages then."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a projection has emitted.

    Attributes:
        message_id: The same whenever it is passed on: who gets it twice tells by it.
        topic: What it is about.
        key: Those of one key that come from one row are passed on in their order.
        payload: From JSON.
        position: Of the event that it follows from.
        projection: Whose handler has emitted it.
        attempts: How often it was tried before.
    """

    id: int
    message_id: str
    topic: str
    key: str
    payload: Any
    position: int
    projection: str
    created_at: datetime
    attempts: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that could not be passed on, and the class of what that raised."""

    message: Message
    error: str


@dataclass(frozen=True, slots=True)
class Relayed:
    """What one step of a relay has done.

    Attributes:
        passed_on: How many messages.
        refused: How many could not be; they are tried again, or were given up.
        caught_up: There was nothing else to pass on, but for what other relays are at.
    """

    passed_on: int
    refused: int
    caught_up: bool


@dataclass(slots=True)
class PassingOn:
    """Goes through messages in their order; behind one that is refused its key waits.

    Attributes:
        more: Whether there may be others, for the next step.
    """

    messages: Sequence[Message]
    more: bool
    passed_on: list[Message] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    in_a_row: int = 0

    def __iter__(self) -> Iterator[Message]:
        """Yield what is to be published; after each, say what came of it."""
        waiting = set[str]()
        for message in self.messages:
            if self.in_a_row >= FAILURES_MAX:
                return
            if message.key in waiting:
                continue
            refused = len(self.refused)
            yield message
            if len(self.refused) > refused:
                waiting.add(message.key)

    def succeed(self, message: Message) -> None:
        """Note that it was published."""
        self.passed_on.append(message)
        self.in_a_row = 0

    def fail(self, message: Message, error: Exception) -> None:
        """Note that it was not. Of the error the class: its text may quote the payload."""
        self.refused.append(Refusal(message, type(error).__name__))
        self.in_a_row += 1

    @property
    def report(self) -> Relayed:
        """What was done."""
        caught_up = not self.more and not self.refused
        return Relayed(len(self.passed_on), len(self.refused), caught_up)
