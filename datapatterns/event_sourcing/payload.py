"""What an event's data may be, so that whatever is stored can be read back by everybody.

PostgreSQL's jsonb refuses some of what Python takes for JSON (U+0000, half a surrogate pair, NaN)
with an error that costs the caller the transaction, and stores some of what Python cannot read
back (numbers of 100,000 digits). One such event would stop every reader, so it is refused here.
"""

import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Final

import msgspec

from datapatterns.errors import EventDataError, EventShapeError

EVENT_BYTES_MAX: Final = 1_048_576
"""The largest data of one event, as JSON in UTF-8."""

DEPTH_MAX: Final = 64
"""How deep data may be nested."""

_INTEGER_MAX: Final = 2**63 - 1
_FLOAT_WITHOUT_FRACTION: Final = 1e15
_EXPONENT: Final = re.compile(rb"[0-9]e\+?[0-9]")
_QUOTED: Final = re.compile(r"^(Invalid (?:enum )?value) .*?(?= - at `|$)", re.DOTALL)
_LARGE_INTEGER: Final = re.compile(r"[0-9]{19}")
_encoder = msgspec.json.Encoder()


def encode_mapping(data: Mapping[str, Any], *, event_type: str) -> str:
    """Return ``data`` as JSON that can be stored and read back.

    Raises:
        EventDataError: It holds what JSON or PostgreSQL cannot hold, or is too large.
    """
    return _encode(dict(data), event_type=event_type, str_keys=False)


def encode_event(event: object, *, event_type: str) -> str:
    """Return a dataclass or Struct as JSON that can be stored and read back.

    Raises:
        EventDataError: It holds what JSON or PostgreSQL cannot hold, or is too large.
    """
    return _encode(event, event_type=event_type, str_keys=True)


def encode_state(state: Mapping[str, Any], *, aggregate: str) -> str:
    """Return an aggregate's state as JSON that can be stored and read back, of any size.

    Raises:
        EventDataError: It holds what JSON or PostgreSQL cannot hold.
    """
    return _as_json(_plain(dict(state), event_type=aggregate, str_keys=True)).decode()


def _encode(value: object, *, event_type: str, str_keys: bool) -> str:
    encoded = _as_json(_plain(value, event_type=event_type, str_keys=str_keys))
    if len(encoded) > EVENT_BYTES_MAX:
        raise EventDataError(
            event_type,
            f"it is {len(encoded)} bytes of JSON and {EVENT_BYTES_MAX} is most; store large"
            " content elsewhere and its key here",
        )
    return encoded.decode()


def _plain(value: object, *, event_type: str, str_keys: bool) -> dict[str, Any]:
    try:
        plain = msgspec.to_builtins(value, str_keys=str_keys)
        _check(plain, "", 0)
    except (TypeError, _UnstorableError) as error:
        raise EventDataError(event_type, str(error)) from error
    except RecursionError as error:
        raise EventDataError(event_type, "it is nested too deep, or within itself") from error
    if not isinstance(plain, dict):
        raise EventDataError(event_type, "it must be an object with named fields")
    return plain


def _as_json(plain: object) -> bytes:
    encoded = _encoder.encode(plain)
    # A text may hold such a thing, too; then nothing is rewritten.
    return _encoder.encode(_spelled_out(plain)) if _EXPONENT.search(encoded) else encoded


def _spelled_out(value: object) -> object:
    # PostgreSQL writes 4e16 back as 40000000000000000, an integer; 40000000000000000.0 it keeps.
    if type(value) is float and abs(value) >= _FLOAT_WITHOUT_FRACTION:
        return msgspec.Raw(f"{value:.1f}".encode())
    if isinstance(value, dict):
        return {name: _spelled_out(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled_out(part) for part in value]
    return value


def decode_stored(text: str, *, event_type: str, schema_version: int) -> Any:  # noqa: ANN401 -- JSON
    """Return stored JSON as it was appended.

    An integer of more than 63 bits was never appended as one: it was a float like 1e23, before
    floats were spelled out, and becomes that again.

    Raises:
        EventShapeError: Python cannot read it; it was not appended by this library.
    """
    try:
        decoded = msgspec.json.decode(text)
        return _with_floats(decoded) if _LARGE_INTEGER.search(text) else decoded
    except (msgspec.DecodeError, OverflowError, RecursionError) as error:
        reason = misfit(error) if isinstance(error, msgspec.DecodeError) else "it is out of bounds"
        raise EventShapeError(event_type, schema_version=schema_version, reason=reason) from None


def _with_floats(value: Any) -> Any:  # noqa: ANN401 -- JSON
    if isinstance(value, int) and not -_INTEGER_MAX <= value <= _INTEGER_MAX:
        return float(value)
    if isinstance(value, dict):
        return {name: _with_floats(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_floats(part) for part in value]
    return value


def misfit(error: msgspec.MsgspecError) -> str:
    """Return what ``error`` says without the value that it quotes; chain nothing to it.

    >>> misfit(msgspec.ValidationError("Invalid enum value 'rouge' - at `$.colour`"))
    'Invalid enum value - at `$.colour`'
    """
    return _QUOTED.sub(r"\1", str(error))


class _UnstorableError(Exception):
    """Says what is wrong, and where."""


def _check(value: object, path: str, depth: int) -> None:
    check = _CHECKS.get(type(value))
    if check is not None:
        check(value, path, depth)


def _check_text(text: Any, path: str, _depth: int) -> None:  # noqa: ANN401 -- called by its type
    if "\0" in text:
        raise _UnstorableError(f"{path or 'a key'} holds U+0000; leave it out, or encode it")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _UnstorableError(f"{path or 'a key'} holds half a surrogate pair") from error


def _check_integer(number: Any, path: str, _depth: int) -> None:  # noqa: ANN401 -- called by its type
    if not -_INTEGER_MAX <= number <= _INTEGER_MAX:
        raise _UnstorableError(f"{path} is an integer of more than 63 bits; store it as text")


def _check_float(number: Any, path: str, _depth: int) -> None:  # noqa: ANN401 -- called by its type
    if not isfinite(number):
        raise _UnstorableError(f"{path} is {number}, which JSON does not know; use None")


def _check_object(mapping: Any, path: str, depth: int) -> None:  # noqa: ANN401 -- called by its type
    _check_depth(path, depth)
    for key, value in mapping.items():
        if type(key) is not str:
            raise _UnstorableError(f"{path or 'it'} has the key {key!r}; keys must be text")
        _check_text(key, "", depth)
        _check(value, f"{path}.{key}" if path else key, depth + 1)


def _check_array(values: Any, path: str, depth: int) -> None:  # noqa: ANN401 -- called by its type
    _check_depth(path, depth)
    for index, value in enumerate(values):
        _check(value, f"{path}[{index}]", depth + 1)


def _check_depth(path: str, depth: int) -> None:
    if depth >= DEPTH_MAX:
        raise _UnstorableError(f"{path[:80]}... is nested deeper than {DEPTH_MAX}")


# By exact type: to_builtins leaves only these, None and booleans. It is the hot path of append.
_CHECKS: Final[dict[type, Callable[[Any, str, int], None]]] = {
    str: _check_text,
    int: _check_integer,
    float: _check_float,
    dict: _check_object,
    list: _check_array,
    tuple: _check_array,
}
