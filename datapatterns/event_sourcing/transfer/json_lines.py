"""Events as lines of JSON: what an export writes, and an import reads.

A file is a header, then an event on each line, in the order of the log. A checkpoint says that
all events up to it, of those that were asked for, are above it: an export that is complete ends
with one.
"""

import binascii
from base64 import b64decode
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec

from datapatterns.errors import EventDataError, EventLineError, EventShapeError
from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.content.payload import (
    EVENT_BYTES_MAX,
    decode_stored,
    encode_mapping,
)
from datapatterns.event_sourcing.events import VERSION_MAX, StreamId, check_event_type, check_tags

FORMAT: Final = "datapatterns.events"
FORMAT_VERSION: Final = 1

LINE_BYTES_MAX: Final = 8 * 1_048_576
"""The longest line; data and metadata of the largest event fit several times."""

_CODEC_MAX: Final = 2**15 - 1
_ON_ONE_LINE: Final = bytes.maketrans(b"\r\t", b"  ")
_OTHER_FILES: Final = {
    b"\x1f\x8b": "the file is compressed by gzip; give it a name that ends with .gz",
    b"\x28\xb5\x2f\xfd": "the file is compressed; unpack it: zstd -dc FILE | ... import -",
    BOM_UTF16_LE: "the file is in UTF-16; write it in UTF-8",
    BOM_UTF16_BE: "the file is in UTF-16; write it in UTF-8",
}
_CHECKPOINT_BEGINS: Final = b'{"checkpoint"'


NULL: Final = msgspec.Raw(b"null")


class StoredEvent(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """An event exactly as it is stored.

    Attributes:
        position: Its place among all events; None in lines that others wrote.
        version: Its place in its stream; None for the next one.
        event_id: None for a new one.
        recorded_at: In UTC; None for the time of the import.
        data: JSON; ``null`` if a codec made ``payload`` of it.
        metadata: JSON; ``null`` if there is none.
        codec: Which codec; 0 means none.
        payload: What the codec made, in base64.
    """

    position: int | None = None
    tenant: str = ""
    category: str
    key: str
    version: int | None = None
    event_type: str = msgspec.field(name="type")
    schema_version: int = 1
    event_id: UUID | None = msgspec.field(name="id", default=None)
    recorded_at: datetime | None = msgspec.field(name="at", default=None)
    data: msgspec.Raw = NULL
    metadata: msgspec.Raw = NULL
    codec: int = 0
    payload: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def stream(self) -> StreamId:
        """The stream that it belongs to."""
        return _stream_id(self.category, self.key, self.tenant)


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first line of a file.

    Attributes:
        export_id: Names this export; None in files that others wrote.
        after: The export begins after this position.
        where: Which events were asked for.
    """

    format: str
    format_version: int
    export_id: UUID | None = None
    exported_at: datetime | None = None
    after: int = 0
    where: dict[str, Any] = {}

    def is_same_export(self, other: "Header") -> bool:
        """Tell whether ``other`` asks for the same events."""
        return self.asked() == other.asked()

    def asked(self) -> str:
        """Return which events were asked for, as JSON."""
        asked = {"after": self.after, "where": self.where}
        return _encoder.encode(asked).decode()


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A line that says how far the lines above it reach.

    Attributes:
        checkpoint: A position.
        events: How many events the file holds up to here.
    """

    checkpoint: int
    events: int


def new_header(*, after: int, where: Mapping[str, Any], now: datetime) -> Header:
    """Return the header of an export that begins now."""
    return Header(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        export_id=uuid4(),
        exported_at=now,
        after=after,
        where=dict(where),
    )


def line_of(line: StoredEvent | Header | Checkpoint) -> bytes:
    """Return ``line`` as JSON, with its line end."""
    return _encoder.encode(line) + b"\n"


def read_header(line: bytes) -> Header:
    """Return the header in ``line``, the first of a file.

    Raises:
        EventLineError: It is none, or of a format that this release does not know.
    """
    for begins, advice in _OTHER_FILES.items():
        if line.startswith(begins):
            raise EventLineError(1, advice)
    try:
        header = _headers.decode(line.removeprefix(BOM_UTF8))  # as editors on Windows write it
    except (msgspec.DecodeError, RecursionError) as error:
        raise EventLineError(
            1,
            f"it is no header ({error}); the first line must be"
            f' {{"format":"{FORMAT}","format_version":{FORMAT_VERSION}}}',
        ) from None
    if header.format != FORMAT:
        raise EventLineError(1, f"the format is not {FORMAT}")
    if header.format_version != FORMAT_VERSION:
        raise EventLineError(
            1,
            f"it is version {header.format_version} of the format, and this release reads"
            f" version {FORMAT_VERSION}; upgrade the library",
        )
    return header


def read_line(line: bytes, number: int) -> StoredEvent | Checkpoint:
    """Return what is in ``line``, the one with that number; the header is number 1.

    What it returns can be stored: names, bounds and data were checked.

    Raises:
        EventLineError: It is not an event that could be stored.
    """
    if len(line) >= LINE_BYTES_MAX:
        raise EventLineError(number, f"it is longer than {LINE_BYTES_MAX} bytes; no event is")
    if not line.endswith(b"\n"):
        # A file that was cut off inside a number could still be JSON.
        raise EventLineError(number, "it has no line end, so it may be cut off")
    try:
        if line.startswith(_CHECKPOINT_BEGINS):
            return _checkpoints.decode(line)
        event = _events.decode(line)
        _check(event)
    except EventShapeError as error:  # its advice is for who reads events, not for who writes lines
        raise EventLineError(number, f"its data cannot be read: {error.reason}") from None
    except (EventDataError, RecursionError, ValueError) as error:
        raise EventLineError(number, str(error)) from None
    return event


def encoded(event: StoredEvent) -> EncodedEvent:
    """Return an event that was read from a line as the database takes it, byte for byte."""
    content = event.payload if _is_null(event.data) else _text(event.data)
    return EncodedEvent(
        event.event_type,
        event.schema_version,
        event.event_id or uuid4(),
        content or "",
        None if _is_null(event.metadata) else _text(event.metadata),
        event.tags,
        event.codec,
    )


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw).strip() == b"null"


def _text(raw: msgspec.Raw) -> str:
    # Between tokens tabs are allowed, inside of texts they are not; to COPY they end a column.
    return bytes(raw).translate(_ON_ONE_LINE).decode()


def _check(event: StoredEvent) -> None:
    _ = event.stream  # its parts are checked as it is made
    _check_type(event.event_type, event.schema_version)
    check_tags(event.tags)
    if event.version is not None and not 1 <= event.version <= VERSION_MAX:
        raise ValueError(f"version {event.version} is out of bounds; streams begin with 1")
    if event.recorded_at is not None and event.recorded_at.utcoffset() is None:
        raise ValueError(f"{event.recorded_at} has no time zone; give one, such as Z")
    _check_content(event)
    if not _is_null(event.metadata):
        _check_object(event.metadata, event, "metadata")


def _check_content(event: StoredEvent) -> None:
    if event.codec == 0:
        if _is_null(event.data) or event.payload is not None:
            raise ValueError("without a codec it needs data, and no payload")
        _check_object(event.data, event, "data")
        return
    if not 0 < event.codec <= _CODEC_MAX:
        raise ValueError(f"codec {event.codec} is out of bounds")
    if event.payload is None or not _is_null(event.data):
        raise ValueError("with a codec it needs a payload, and no data")
    try:
        b64decode(event.payload, validate=True)
    except binascii.Error as error:
        raise ValueError("the payload is not base64") from error


def _check_object(raw: msgspec.Raw, event: StoredEvent, name: str) -> None:
    text = bytes(raw).decode()
    if len(text) > EVENT_BYTES_MAX:
        raise ValueError(f"its {name} is larger than {EVENT_BYTES_MAX} bytes")
    found = decode_stored(text, event_type=event.event_type, schema_version=event.schema_version)
    if not isinstance(found, dict):
        raise ValueError(f"its {name} must be an object with named fields")  # noqa: TRY004
    encode_mapping(found, event_type=event.event_type)


# The same names come again and again, and looking at their letters is most of the work.
_stream_id: Final = lru_cache(maxsize=20_000)(StreamId)
_check_type: Final = lru_cache(maxsize=1_000)(check_event_type)
_encoder: Final = msgspec.json.Encoder()
_headers: Final = msgspec.json.Decoder(Header)
_checkpoints: Final = msgspec.json.Decoder(Checkpoint)
_events: Final = msgspec.json.Decoder(StoredEvent)
