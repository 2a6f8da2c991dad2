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
        self._from_client = bytearray()
        self._from_server = bytearray()
        self._count = 0
        self._unanswered: deque[int] = deque()

    def requests(self, data: bytes) -> list[Request]:
        """Return what is complete now that the client has sent ``data``, too."""
        self._from_client += data
        found = []
        while message := _take_value(self._from_client):
            found.append(self._request(message))
        return found

    def replies(self, data: bytes) -> list[Reply]:
        """Return what is complete now that the server has sent ``data``, too."""
        self._from_server += data
        found = []
        while message := _take_value(self._from_server):
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


def _take_value(buffer: bytearray) -> bytes | None:
    """Remove the first value; None if it isn't complete."""
    position, missing = 0, 1
    while missing:
        line_end = buffer.find(_LINE_END, position)
        if line_end < 0:
            return None
        kind = buffer[position : position + 1]
        if kind in _LINES:
            missing, position = missing - 1, line_end + 2
            continue
        size = _size(buffer[position + 1 : line_end])
        position = line_end + 2
        missing += _values_within(kind, size) - (kind != b"|")
        if kind in _STRINGS and size >= 0:
            position += size + 2
        if len(buffer) < position:
            return None
    value = bytes(buffer[:position])
    del buffer[:position]
    return value


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
