"""Where a page ended, as text that callers hand back unread."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from datapatterns.errors import PageCursorError

_CHECKED: Final = 8
_LENGTH_MAX: Final = 10_000

_Reading = Callable[[str], Any]
_TAGS: Final[dict[type, tuple[str, Callable[[Any], str]]]] = {
    bool: ("b", str),
    int: ("i", str),
    float: ("f", repr),
    str: ("s", str),
    Decimal: ("d", str),
    datetime: ("t", datetime.isoformat),
    date: ("y", date.isoformat),
    time: ("h", time.isoformat),
    timedelta: ("p", lambda span: repr((span.days, span.seconds, span.microseconds))),
    UUID: ("u", str),
    bytes: ("x", bytes.hex),
}
_READING: Final[dict[str, _Reading]] = {
    "b": lambda text: text == "True",
    "i": int,
    "f": float,
    "s": str,
    "d": Decimal,
    "t": datetime.fromisoformat,
    "y": date.fromisoformat,
    "h": time.fromisoformat,
    "p": lambda text: timedelta(*map(int, text.strip("()").split(","))),
    "u": UUID,
    "x": bytes.fromhex,
}


def cursor_of(order: str, values: Sequence[object]) -> str:
    """Return a cursor that stands after a row.

    Args:
        order: What the pages are ordered by, in words.
        values: The row's values of that.

    Raises:
        PageCursorError: A value is NULL, or of a type that no cursor can hold.
    """
    written = json.dumps([_written(value) for value in values], separators=(",", ":"))
    return urlsafe_b64encode(_check(order, written) + written.encode()).decode().rstrip("=")


def values_of(order: str, cursor: str) -> list[Any]:
    """Return the values that `cursor_of` was given.

    A cursor holds no secret and gives no rights: whoever forges one begins a page elsewhere, in
    rows that the statement shows anyway. The check finds cursors that were cut or mixed up.

    Raises:
        PageCursorError: It is none, or of pages in another order.
    """
    try:
        if len(cursor) > _LENGTH_MAX:
            raise PageCursorError("it is longer than any cursor")
        content = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        check, written = content[:_CHECKED], content[_CHECKED:].decode()
        if _check(order, written) != check:
            raise PageCursorError("it is damaged, or of pages in another order")
        return [_READING[tag](text) for tag, text in json.loads(written)]
    except (Base64Error, ValueError, TypeError, KeyError, InvalidOperation) as error:
        raise PageCursorError("nobody made it") from error


def _written(value: object) -> tuple[str, str]:
    if isinstance(value, Enum):
        raise PageCursorError("an enum orders its pages, whose members may change")
    if type(value) not in _TAGS:
        what = "NULL" if value is None else f"a {type(value).__name__}"
        raise PageCursorError(f"{what} orders its pages")
    tag, writing = _TAGS[type(value)]
    return tag, writing(value)


def _check(order: str, written: str) -> bytes:
    return sha256(f"{order}\0{written}".encode()).digest()[:_CHECKED]
