"""Read what Redis says, for those who have no ``hiredis``: as fast as Python can."""

from collections.abc import Callable
from typing import Final

from redis.exceptions import InvalidResponse

NOT_ENOUGH: Final = object()
"""The rest is still on its way."""
_LINE = b"\r\n"


class PlainReader:
    """A reader of replies, as `hiredis.Reader` is one.

    Args:
        error_of: Makes an exception of what the server calls an error.
    """

    def __init__(self, error_of: Callable[[str], Exception]) -> None:
        self._error_of = error_of
        self._data = bytearray()

    def feed(self, data: bytes, /) -> None:
        """Take more bytes."""
        self._data += data

    def gets(self) -> object:
        """Return the next reply, or `NOT_ENOUGH` until it is whole.

        Raises:
            InvalidResponse: These are no replies.
        """
        reply, end = self._reply_at(0)
        if reply is not NOT_ENOUGH:
            del self._data[:end]
        return reply

    def _reply_at(self, begin: int) -> tuple[object, int]:
        line_end = self._data.find(_LINE, begin)
        if line_end < 0:
            return NOT_ENOUGH, begin
        kind, said = self._data[begin : begin + 1], bytes(self._data[begin + 1 : line_end])
        end = line_end + len(_LINE)
        match bytes(kind):
            case b"+":
                return said, end
            case b"-":
                return self._error_of(said.decode(errors="replace")), end
            case b":":
                return _number(said), end
            case b"$":
                return self._bulk_at(end, _number(said))
            case b"*":
                return self._list_at(end, _number(said))
            case _:
                raise InvalidResponse(f"no reply begins with {bytes(kind)!r}")

    def _bulk_at(self, begin: int, size: int) -> tuple[object, int]:
        if size < 0:
            return None, begin
        end = begin + size + len(_LINE)
        if len(self._data) < end:
            return NOT_ENOUGH, begin
        return bytes(self._data[begin : begin + size]), end

    def _list_at(self, begin: int, count: int) -> tuple[object, int]:
        if count < 0:
            return None, begin
        replies: list[object] = []
        end = begin
        for _ in range(count):
            reply, end = self._reply_at(end)
            if reply is NOT_ENOUGH:
                return NOT_ENOUGH, begin
            replies.append(reply)
        return replies, end


def _number(said: bytes) -> int:
    try:
        return int(said)
    except ValueError:
        raise InvalidResponse(f"{said!r} is no number") from None
