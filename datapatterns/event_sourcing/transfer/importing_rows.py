"""The rows of a chunk as COPY takes them.

In COPY's binary format: the server takes three quarters of the time that it takes for text, and
nothing has to be quoted. See "COPY, File Formats" in PostgreSQL's documentation.
"""

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Final

from datapatterns.event_sourcing.content.encoding import EncodedEvent, refuse_readable
from datapatterns.event_sourcing.transfer.importing_parts import StreamPart

COLUMNS: Final = "stream_id, version, at, event_id, type_id, codec, data, payload, meta, tags"

_BYTES_PER_BLOCK: Final = 120_000  # the driver would cut what is over 131,072 in pieces
_BEGIN: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END: Final = b"\xff\xff"
_NULL: Final = b"\xff\xff\xff\xff"
_NULL_TWICE: Final = 2 * _NULL
_HEAD: Final = Struct(">h iq iq iq i16s ii ih i")
"""The number of columns; each but the last four, after its size; the size of the data."""
_SIZE: Final = Struct(">i")
_ARRAY: Final = Struct(">iiIii")
_TEXT: Final = 25
"""The number of the type, in every database."""
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Return a time as the server counts it.

    >>> microseconds(datetime(2000, 1, 1, 0, 0, 0, 7, tzinfo=UTC))
    7
    """
    return (moment - _EPOCH) // _MICROSECOND


def copied_rows(
    events: Sequence[EncodedEvent],
    parts: Sequence[StreamPart],
    times: Sequence[datetime],
    type_ids: Mapping[tuple[str, int], int],
    encoding: str,
) -> Iterator[bytes]:
    """Return blocks of bytes for a binary COPY of `COLUMNS`.

    Args:
        events: The rows, in their order.
        parts: That of each; its version is counted up.
        times: When each was recorded; empty for the times of their parts.
        type_ids: By name and schema version.
        encoding: That of text on this connection, as Python calls it.
    """
    refuse_readable(events)
    pack = _HEAD.pack
    block, size = [_BEGIN], 0
    for number, (event, part) in enumerate(zip(events, parts, strict=True)):
        data, meta, tags, codec = event.data, event.meta, event.tags, event.codec
        part.version = version = part.version + 1
        at = microseconds(times[number]) if times else part.at
        of_id = event.event_id.int.to_bytes(16, "big")
        type_id = type_ids[event.name, event.schema_version]
        if codec:
            content, length = _sized(b64decode(data)), -1
        else:
            content = data.encode(encoding)
            length = len(content)
        fixed = 8, part.stream_id, 8, version, 8, at, 16, of_id, 4, type_id, 2, codec, length
        block += (pack(10, *fixed), content)
        if not codec:
            block.append(_NULL)
        if meta is None and not tags:
            block.append(_NULL_TWICE)
        else:
            text = _NULL if meta is None else _sized(meta.encode(encoding))
            block += (text, _array(tags, encoding))
        size += len(content)
        if size > _BYTES_PER_BLOCK:
            yield b"".join(block)
            block, size = [], 0
    block.append(_END)
    yield b"".join(block)


def _sized(content: bytes) -> bytes:
    return _SIZE.pack(len(content)) + content


def _array(texts: Sequence[str], encoding: str) -> bytes:
    r"""Return an array of text, or NULL if it is empty.

    >>> _array(("a", "bc"), "utf-8").hex(" ", 4)
    '0000001f 00000001 00000000 00000019 00000002 00000001 00000001 61000000 026263'
    """
    if not texts:
        return _NULL
    head = _ARRAY.pack(1, 0, _TEXT, len(texts), 1)
    return _sized(head + b"".join([_sized(text.encode(encoding)) for text in texts]))
