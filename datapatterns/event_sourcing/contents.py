"""What events and snapshots say, on their way into the database and out of it.

Whatever is read is one text column. Plain JSON begins with a brace; what needs work begins with
``#``, the codec, and the event's id where there is one. So reading plain JSON costs nothing more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Text, case, cast, func, literal

from datapatterns.event_sourcing.codecs import PLAIN, Codecs
from datapatterns.event_sourcing.encoding import EncodedEvent


@dataclass(frozen=True, slots=True)
class Contents:
    """How one store writes and reads contents."""

    codecs: Codecs = field(default=PLAIN)

    def outgoing(
        self, conn: Connection, encoded: Sequence[EncodedEvent], *, tenant: str
    ) -> Sequence[EncodedEvent]:
        """Return events as they are stored. Their ids must be final: contents are bound to them.

        Raises:
            CodecError: The codec does not give back what it was given.
        """
        del conn, tenant
        return self.codecs.encode_events(encoded)

    def incoming(
        self, conn: Connection, contents: Sequence[str], *, tenant: str | Sequence[str]
    ) -> Sequence[str]:
        """Return the JSON of events that were read as `event_content`, for each its tenant.

        Raises:
            CodecError: The store does not know a codec.
            EncryptionKeyError: A key is not at hand.
            PayloadError: A payload is damaged, or belongs to another event.
        """
        del conn, tenant
        if self.codecs.is_plain:
            return contents
        return [self.codecs.event_text(content) for content in contents]


def event_content(events: FromClause) -> ColumnElement[str]:
    """Return the data of an event for `Contents.incoming`."""
    id_ = cast(events.c.event_id, Text)
    return _content(events.c.data, events, _head(events), literal(" "), id_, literal(" "))


def state_content(snapshots: FromClause) -> ColumnElement[str]:
    """Return the state of a snapshot for `Codecs.state_text`."""
    return _content(snapshots.c.state, snapshots, _head(snapshots), literal(" "))


def _head(table: FromClause) -> ColumnElement[str]:
    return func.concat("#", cast(table.c.codec, Text), type_=Text)


def _content(
    plain: ColumnElement[Any], table: FromClause, *head: ColumnElement[str]
) -> ColumnElement[str]:
    payload = func.encode(table.c.payload, "base64", type_=Text)
    coded = func.concat(*head, payload, type_=Text)
    return case((table.c.codec == 0, cast(plain, Text)), else_=coded)
