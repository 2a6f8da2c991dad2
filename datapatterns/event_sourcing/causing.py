"""Where an event came from: the keys of metadata that say so, and how to fill them."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from datapatterns.event_sourcing.events import RecordedEvent

CORRELATION_ID: Final = "correlation_id"
"""The same in all that one request, message or job has led to, however indirectly."""

CAUSATION_ID: Final = "causation_id"
"""The id of the event or command that led to this one directly."""


def caused_by(
    cause: RecordedEvent | UUID | str,
    metadata: Mapping[str, Any] | None = None,
    *,
    correlation_id: UUID | str | None = None,
) -> dict[str, Any]:
    """Return metadata for what happens because of ``cause``.

    >>> caused_by("command-7", {"user": "ann"})
    {'user': 'ann', 'correlation_id': 'command-7', 'causation_id': 'command-7'}

    Args:
        cause: A recorded event, or the id of a command, request or message.
        metadata: What else to say.
        correlation_id: What it all belongs to. By default that of a recorded event, and what has
            none begins one of its own.

    Raises:
        ValueError: An id is empty, or ``metadata`` holds one of the two keys already.
    """
    causation = cause.event_id if isinstance(cause, RecordedEvent) else cause
    if correlation_id is None and isinstance(cause, RecordedEvent) and cause.metadata:
        correlation_id = cause.metadata.get(CORRELATION_ID)
    ids = {CORRELATION_ID: str(correlation_id or causation), CAUSATION_ID: str(causation)}
    if not all(ids.values()):
        raise ValueError("an empty id names no cause; give that of an event or a command")
    taken = sorted(ids.keys() & (metadata or {}).keys())
    if taken:
        raise ValueError(f"metadata holds {', '.join(taken)} already; name the cause once")
    return {**(metadata or {}), **ids}
