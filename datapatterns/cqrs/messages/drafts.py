"""What a handler emits; without a database."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from datapatterns.errors import MessageRefusedError, ProjectionDefinitionError
from datapatterns.event_sourcing.events import Position

MESSAGE_BYTES_MAX: Final = 262_144
"""How large the payload of a message may be, as JSON: what brokers take. Send a reference."""

TOPIC_CHARS_MAX: Final = 200
KEY_BYTES_MAX: Final = 500

BUCKETS: Final = 64
"""By how many locks relays share the keys out."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A message as a handler has worded it.

    Attributes:
        payload: As JSON.
        key: None if its row is its key.
    """

    topic: str
    payload: str
    key: str | None

    @classmethod
    def of(cls, projection: str, topic: object, payload: object, *, key: object) -> "Draft":
        """Return the message if it can be stored.

        Raises:
            MessageRefusedError: It cannot.
        """
        if not isinstance(topic, str) or not 1 <= len(topic) <= TOPIC_CHARS_MAX:
            raise MessageRefusedError(projection, f"a topic is 1 to {TOPIC_CHARS_MAX} characters")
        if key is not None and not (
            isinstance(key, str) and 1 <= len(key.encode(errors="replace")) <= KEY_BYTES_MAX
        ):
            raise MessageRefusedError(projection, f"a key is text of 1 to {KEY_BYTES_MAX} bytes")
        try:
            encoded = msgspec.json.encode(payload)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise MessageRefusedError(
                projection, f"a payload of class {type(payload).__name__} is not JSON"
            ) from error
        if len(encoded) > MESSAGE_BYTES_MAX:
            raise MessageRefusedError(
                projection, f"a payload of {len(encoded)} bytes is above {MESSAGE_BYTES_MAX}"
            )
        return cls(topic, encoded.decode(), key)


class Emitted(NamedTuple):
    """A message, and from which event and row it is."""

    position: Position
    table: type
    row_key: Hashable
    draft: Draft


@contextmanager
def emitting(emitter: object) -> Iterator[list[Draft]]:
    """Let a handler emit messages in the block; give the list that they come into."""
    drafts = list[Draft]()
    vars(emitter)[_DRAFTS] = drafts
    try:
        yield drafts
    finally:
        del vars(emitter)[_DRAFTS]


def send(emitter: object, name: str, draft: Draft) -> None:
    """Add a message to those of the handler that runs.

    Raises:
        ProjectionDefinitionError: None runs.
    """
    drafts = vars(emitter).get(_DRAFTS)
    if drafts is None:
        raise ProjectionDefinitionError(
            name, "messages follow from events; call emit in a method with @on"
        )
    drafts.append(draft)


def bucket_of(key: str) -> int:
    """Return with which other keys a key shares a lock of the relays.

    >>> bucket_of("customer-7")
    59
    """
    return sha256(key.encode(errors="surrogatepass")).digest()[0] % BUCKETS


_DRAFTS: Final = "_drafts"
