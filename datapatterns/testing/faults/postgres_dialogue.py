"""PostgreSQL's protocol, version 3, as far as a proxy needs it.

Source: "Frontend/Backend Protocol" in PostgreSQL's documentation.
"""

from collections import deque
from dataclasses import dataclass, field

from datapatterns.testing.faults.asking import statements
from datapatterns.testing.faults.dialogues import Reply, Request, UnknownProtocolError

_PROTOCOL_3 = 3
_CANCEL_REQUEST = 80877102
_ENCRYPTION_REQUESTS = {80877103, 80877104}  # TLS, GSS
_NO_ENCRYPTION = b"N"
_GREETING_BYTES_MAX = 10_000
_MESSAGE_BYTES_MAX = 2**31
_COMPLETIONS = b"CIsE"  # command complete, empty query, portal suspended, error


@dataclass(slots=True)
class _Batch:
    """What the server answers up to the next of its ReadyForQuery messages."""

    numbers: list[int] = field(default_factory=list)
    completed: int = 0
    is_closed: bool = False  # by the client: the server will end it with ReadyForQuery
    is_simple: bool = False


class PostgresDialogue:
    """One connection, of which all is read that passes; replication streams pass unread."""

    def __init__(self) -> None:
        self._from_client = bytearray()
        self._from_server = bytearray()
        self._has_begun = False
        self._count = 0
        self._prepared: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}
        self._batches: deque[_Batch] = deque()

    def requests(self, data: bytes) -> list[Request]:
        """Return what is complete now that the client has sent ``data``, too."""
        self._from_client += data
        found, position = [], 0
        while end := self._end_of_request(position):
            message = bytes(self._from_client[position:end])
            found.append(self._request(message) if self._has_begun else self._greeting(message))
            position = end
        del self._from_client[:position]
        return found

    def replies(self, data: bytes) -> list[Reply]:
        """Return what is complete now that the server has sent ``data``, too."""
        self._from_server += data
        found, position = [], 0
        while end := _message_end(self._from_server, position, kind_bytes=1):
            found.append(self._reply(bytes(self._from_server[position:end])))
            position = end
        del self._from_server[:position]
        return found

    def _end_of_request(self, position: int) -> int | None:
        if self._has_begun:
            return _message_end(self._from_client, position, kind_bytes=1)
        # PostgreSQL accepts no longer ones. A TLS handshake, for one, looks like a huge length.
        return _message_end(
            self._from_client, position, kind_bytes=0, bytes_max=_GREETING_BYTES_MAX
        )

    def _greeting(self, message: bytes) -> Request:
        code = int.from_bytes(message[4:8], "big")
        if code in _ENCRYPTION_REQUESTS:
            # Encrypted, nothing could be recognised any more. A client that may goes on in clear.
            return Request(b"", answer=_NO_ENCRYPTION)
        if code >> 16 != _PROTOCOL_3 and code != _CANCEL_REQUEST:
            raise UnknownProtocolError("this client doesn't begin as PostgreSQL's do")
        self._has_begun = True
        self._batches.append(_Batch(is_closed=True))  # ends when the client is let in
        return Request(message)

    def _request(self, message: bytes) -> Request:
        kind, body = message[:1], message[5:]
        match kind:
            case b"Q":
                number = self._ask(_Batch(is_closed=True, is_simple=True))
                return Request(message, number, statements(_text(body)))
            case b"F":
                return Request(message, self._ask(_Batch(is_closed=True)))
            case b"P":
                name, sql, *_ = body.split(b"\0", 2)
                self._prepared[name] = _text(sql)
            case b"B":
                portal, name, *_ = body.split(b"\0", 2)
                self._portals[portal] = self._prepared.get(name, "")
            case b"E":
                portal = body.split(b"\0", 1)[0]
                asks = statements(self._portals.get(portal, ""))
                return Request(message, self._ask(self._open_batch()), asks)
            case b"S":
                self._open_batch().is_closed = True
            case _:
                pass  # describes, copies, closes, takes leave
        return Request(message)

    def _ask(self, batch: _Batch) -> int:
        self._count += 1
        batch.numbers.append(self._count)
        if not self._batches or self._batches[-1] is not batch:
            self._batches.append(batch)
        return self._count

    def _open_batch(self) -> _Batch:
        if not self._batches or self._batches[-1].is_closed:
            self._batches.append(_Batch())
        return self._batches[-1]

    def _reply(self, message: bytes) -> Reply:
        kind = message[:1]
        if not self._batches:
            return Reply(message)  # unasked for, such as a notice
        batch = self._batches[0]
        if kind == b"Z":
            self._batches.popleft()
            return Reply(message, ends=batch.numbers[-1] if batch.numbers else None)
        if kind not in _COMPLETIONS or batch.completed >= len(batch.numbers):
            return Reply(message)
        number = batch.numbers[batch.completed]
        if kind == b"E":
            batch.completed = len(batch.numbers)  # the rest of the batch is skipped
        elif not batch.is_simple:
            batch.completed += 1
        # A client that only flushes gets no ReadyForQuery: this was the last word, then.
        return Reply(message, number, ends=None if batch.is_closed else number)


def _message_end(
    buffer: bytearray, position: int, *, kind_bytes: int, bytes_max: int = _MESSAGE_BYTES_MAX
) -> int | None:
    """Return where the message ends that begins at ``position``; None if it isn't complete."""
    begin = position + kind_bytes
    if len(buffer) < begin + 4:
        return None
    length = int.from_bytes(buffer[begin : begin + 4], "big")
    if not 4 <= length <= bytes_max:  # noqa: PLR2004 -- it counts itself
        raise UnknownProtocolError(f"a message of {length} bytes is none of PostgreSQL's")
    return begin + length if begin + length <= len(buffer) else None


def _text(sql: bytes) -> str:
    return sql.rstrip(b"\0").decode(errors="replace")
