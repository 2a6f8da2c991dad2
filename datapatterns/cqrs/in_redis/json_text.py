"""Documents as text: the same document is the same text, and what would change is refused."""

import json
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Final

import msgspec

JSON_BYTES_MAX: Final = 2**20
"""The largest document; it is read and written as a whole."""

JSON_DEPTH_MAX: Final = 100
"""How deep a document may be nested; each reader has a limit, and few say which."""

_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def json_text(value: object) -> str:
    """Return ``value`` as JSON: keys sorted, digits of integers as they are.

    Raises:
        TypeError: It is None, or holds what JSON has no word for.
        ValueError: It is too large or too deep, or holds a number that is none, or half of a
            surrogate pair.
    """
    if value is None:
        raise TypeError("None is no document; return DELETE, or remove it")
    try:
        text = msgspec.json.encode(value, order="deterministic")
    except RecursionError as error:
        raise ValueError("a document refers to itself, or is nested too deep") from error
    if len(text) > JSON_BYTES_MAX:
        raise ValueError(f"a document has {len(text)} bytes, more than {JSON_BYTES_MAX}; split it")
    if b"null" in text:  # what msgspec also writes for nan and infinity
        json.dumps(msgspec.to_builtins(value, str_keys=True), allow_nan=False)
    if text.count(b"[") + text.count(b"{") > JSON_DEPTH_MAX and _depth(text) > JSON_DEPTH_MAX:
        raise ValueError(f"a document is nested deeper than {JSON_DEPTH_MAX}; flatten it")
    return text.decode()


def json_value(text: str) -> Any:  # noqa: ANN401 -- it is JSON
    """Return the document that ``text`` holds.

    Raises:
        ValueError: It holds none.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError("what is stored is no document") from error


def _depth(text: bytes) -> int:
    return max(accumulate(_steps(_STRING.sub(b"", text))))


def _steps(text: bytes) -> Iterator[int]:
    return (_STEPS[byte] for byte in text if byte in _STEPS)
