"""What a history consists of: the events of clients that append to lists and read them."""

from typing import Any, Literal

import msgspec

Key = int | str
"""What names a list."""

Value = int | str
"""What is appended; no value is ever appended to the same list twice."""

OperationName = Literal["append", "r"]
ListOperation = tuple[OperationName, Key, Value | list[Value] | None]
"""``("append", key, value)``, or ``("r", key, values)`` with None for what is not read yet."""

EventType = Literal["invoke", "ok", "fail", "info"]


class HistoryEvent(msgspec.Struct, frozen=True):
    """One line of a history, under the names that Elle gives its parts.

    Attributes:
        index: Which event it was in the order of the recorder.
        process: One logical client, that is, one session.
        type: ``invoke``, then one of ``ok``, ``fail`` (nothing of it ever happened) and ``info``
            (nobody knows; the process never does anything again).
        value: The operations of one transaction.
        time: Nanoseconds since some fixed moment; only people look at it.
        f: What kind of event; there is one.
    """

    index: int
    process: int
    type: EventType
    value: list[ListOperation] | None
    time: int = 0
    f: Literal["txn"] = "txn"


class Transaction(msgspec.Struct, gc=False):
    """What the events of one transaction tell together.

    Attributes:
        invoked: The index of its first event.
        returned: The index of its acknowledgement; ``NEVER`` if there was none.
        operations: The second item is the key, the third is the value of an append, or the list
            that was read, None if there was none. Reads without an answer are left out.
    """

    process: int
    type: EventType
    invoked: int
    returned: float
    operations: list[tuple[str, Key, Any]]

    @property
    def name(self) -> str:
        """Return how explanations call it: by the index of the event that began it."""
        return f"T{self.invoked}"


NEVER = float("inf")
