"""Redis' protocol, versions 2 and 3, as far as a proxy needs it.

Source: "Redis serialization protocol specification" in Redis' documentation.
"""

from collections import deque

from datapatterns.testing.faults.dialogues import Reply, Request, UnknownProtocolError

_LINE_END = b"\r\n"
_LINES = b"+-:_,#("
_STRINGS = b"$!="
_LISTS = b"*~>"
_MAPS = b"%|"  # of pairs; the second is an attribute of the value that follows it
_SUBSCRIPTIONS = {"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"}
_WORDS_SHOWN = 8
_WORD_BYTES_SHOWN = 256


class RedisDialogue:
    """One connection, of which all is read that passes; subscriptions are not counted."""

    def __init__(self) -> None:
        self._from_client = _Values()
        self._from_server = _Values()
        self._count = 0
        self._unanswered: deque[int] = deque()

    def requests(self, data: bytes) -> list[Request]:
        """Return what is complete now that the client has sent ``data``, too."""
        return [self._request(message) for message in self._from_client.take(data)]

    def replies(self, data: bytes) -> list[Reply]:
        """Return what is complete now that the server has sent ``data``, too."""
        found = []
        for message in self._from_server.take(data):
            is_answer = not message.startswith(b">") and self._unanswered
            number = self._unanswered.popleft() if is_answer else None
            found.append(Reply(message, number, number))
        return found

    def _request(self, message: bytes) -> Request:
        words = _words(message)
        if words[0].upper() in _SUBSCRIPTIONS:
            return Request(message, None, [" ".join(words)])
        self._count += 1
        self._unanswered.append(self._count)
        return Request(message, self._count, [" ".join(words)])


class _Values:
    """A stream of values, of which the last may be incomplete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0  # up to here the value is known; a long one is not read again
        self._missing = 1  # values until this one is complete, those within it included

    def take(self, data: bytes) -> list[bytes]:
        """Return the values that are complete now."""
        self._buffer += data
        found, begin = [], 0
        while self._read_value():
            found.append(bytes(self._buffer[begin : self._position]))
            begin, self._missing = self._position, 1
        del self._buffer[:begin]
        self._position -= begin
        return found

    def _read_value(self) -> bool:
        while self._missing:
            line_end = self._buffer.find(_LINE_END, self._position)
            if line_end < 0:
                return False
            kind = self._buffer[self._position : self._position + 1]
            end, within = line_end + len(_LINE_END), 0
            if kind not in _LINES:
                size = _size(self._buffer[self._position + 1 : line_end])
                within = _values_within(kind, size)
                if kind in _STRINGS and size >= 0:
                    end += size + len(_LINE_END)
            if end > len(self._buffer):
                return False
            self._position = end
            self._missing += within - (kind != b"|")
        return True


def _values_within(kind: bytearray, size: int) -> int:
    if kind in _STRINGS or size < 0:
        return 0
    if kind in _LISTS:
        return size
    if kind in _MAPS:
        return 2 * size
    raise UnknownProtocolError(f"{bytes(kind)!r} begins no value of Redis' protocol")


def _size(digits: bytearray) -> int:
    try:
        return int(digits)
    except ValueError:
        raise UnknownProtocolError(f"{bytes(digits)!r} is no length") from None


def _words(command: bytes) -> list[str]:
    """Return the first words of a command; long ones are shortened."""
    if not command.startswith(b"*"):
        raise UnknownProtocolError(f"{command[:1]!r} begins no command of Redis' protocol")
    words: list[str] = []
    position = command.index(_LINE_END) + 2
    while position < len(command) and len(words) < _WORDS_SHOWN:
        line_end = command.index(_LINE_END, position)
        size = int(command[position + 1 : line_end])
        begin = line_end + 2
        words.append(command[begin : begin + min(size, _WORD_BYTES_SHOWN)].decode(errors="replace"))
        position = begin + size + 2
    return words or [""]
