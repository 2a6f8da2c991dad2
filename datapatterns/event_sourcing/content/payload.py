"""What an event's data may be, so that whatever is stored can be read back by everybody.

PostgreSQL's json refuses some of what Python takes for JSON (half a surrogate pair, NaN) with an
error that costs the caller the transaction, its jsonb more (U+0000), and both store what Python
cannot read back (numbers of 100,000 digits). One such event would stop every reader, so it is
refused here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from string import digits
from typing import Any, Final

import msgspec

from datapatterns.errors import EventDataError, EventShapeError
from datapatterns.event_sourcing.content.shapes import (
    encode_lines,
    encoder_of,
    field_names,
    is_model,
    plain,
)

EVENT_BYTES_MAX: Final = 1_048_576
"""The largest data of one event, as JSON in UTF-8."""

DEPTH_MAX: Final = 64
"""How deep data may be nested."""

_INTEGER_MAX: Final = 2**63 - 1
_LARGE_DIGITS: Final = 19
_QUOTED: Final = re.compile(r"^(Invalid (?:enum )?value) .*?(?= - at `|$)", re.DOTALL)
_LARGE_INTEGER: Final = re.compile(rb"[0-9]{%d}" % _LARGE_DIGITS)
_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder()


def encode_mapping(data: Mapping[str, Any], *, event_type: str) -> str:
    """Return ``data`` as JSON that can be stored and read back.

    Raises:
        EventDataError: It holds what JSON or PostgreSQL cannot hold, or is too large.
    """
    given, text = dict(data), ""
    try:
        encoded = _encoder.encode(given)
        # Keys that are no text, NaN and what else JSON does not know come back otherwise.
        if _is_harmless(encoded) and msgspec.json.decode(encoded) == given:
            text = encoded.decode()
    except _UNENCODABLE:
        pass
    text = text or as_json(_checked(given, event_type=event_type, str_keys=False)).decode()
    return _bounded(text, event_type)


def encode_event(event: object, *, event_type: str) -> str:
    """Return an object of a declared class as JSON that can be stored and read back.

    Raises:
        EventDataError: It holds what JSON or PostgreSQL cannot hold, or is too large.
    """
    cls: Any = type(event)
    text = ""
    try:
        encoded = encoder_of(cls)(event)
        if _is_harmless(encoded):
            text = encoded.decode()
            if "null" in text and not _is_nothing(event, cls, text):
                text = ""
    except _UNENCODABLE:
        pass
    text = text or as_json(_checked(event, event_type=event_type, str_keys=True)).decode()
    return _bounded(text, event_type)


def encode_mappings(data: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """Return each as `encode_mapping` does, in a third of its time.

    None if one needs a closer look.
    """
    given = [each if type(each) is dict else dict(each) for each in data]
    try:
        encoded = _encoder.encode_lines(given)
        if _are_harmless(encoded, len(given)) and _decoder.decode_lines(encoded) == given:
            return encoded.decode().split("\n")[:-1]
    except _UNENCODABLE:
        pass
    return None


def encode_events(events: Sequence[object], cls: type) -> list[str] | None:
    """Return each object of ``cls``, which is no model, as `encode_event` does.

    None if one needs a closer look.
    """
    try:
        encoded = encode_lines(events)
    except _UNENCODABLE:
        return None
    if not _are_harmless(encoded, len(events)):
        return None
    texts = encoded.decode().split("\n")[:-1]
    if b"null" in encoded and not all(
        "null" not in text or _is_nothing(event, cls, text)
        for event, text in zip(events, texts, strict=True)
    ):
        return None
    return texts


def encode_state(state: Mapping[str, Any], *, aggregate: str) -> str:
    """Return an aggregate's state as JSON that can be stored and read back, of any size.

    Raises:
        EventDataError: It holds what JSON or PostgreSQL cannot hold.
    """
    checked = _checked(dict(state), event_type=aggregate, str_keys=True)
    return as_json(checked).decode()


_UNENCODABLE: Final = (TypeError, ValueError, OverflowError, RecursionError)
_DIGITS: Final = bytes(ord("0") if chr(byte) in digits else 0 for byte in range(256))


def as_json(checked: object) -> bytes:
    """Return checked builtins as the JSON that is stored, always the same for the same value."""
    return _encoder.encode(checked)


def _is_harmless(encoded: bytes) -> bool:
    """Return whether JSON is an object that cannot hold what must be refused, but for NaN.

    It costs a fifth of looking at each value; what may only seem to hold it is looked at.
    """
    return (
        encoded[0] == _BRACE
        and encoded.count(b"[") + encoded.count(b"{") < DEPTH_MAX
        and rb"\u0000" not in encoded
        and _LARGE not in encoded.translate(_DIGITS)
    )


def _are_harmless(encoded: bytes, count: int) -> bool:
    """Return whether each of these lines, of objects of one class, is harmless."""
    opening = encoded.count(b"[") + encoded.count(b"{")
    return (
        len(encoded) <= EVENT_BYTES_MAX
        and encoded[0] == _BRACE
        and rb"\u0000" not in encoded
        and _LARGE not in encoded.translate(_DIGITS)  # a line end is no digit
        and (
            opening < count + DEPTH_MAX - 1
            or all(line.count(b"[") + line.count(b"{") < DEPTH_MAX for line in encoded.split(b"\n"))
        )
    )


_BRACE: Final = ord("{")
_LARGE: Final = b"0" * _LARGE_DIGITS


def _is_nothing(event: object, cls: type, text: str) -> bool:
    """Return whether each ``null`` is a field that is None; NaN is written so, too."""
    if getattr(getattr(cls, "__struct_config__", None), "omit_defaults", False) or is_model(cls):
        return False  # some that are None may be left out
    nothing = [True for name in field_names(cls) if getattr(event, name, None) is None]
    return text.count("null") == len(nothing)


def _bounded(text: str, event_type: str) -> str:
    # A character is at most four bytes.
    size = len(text) if len(text) <= EVENT_BYTES_MAX // 4 else len(text.encode())
    if size > EVENT_BYTES_MAX:
        raise EventDataError(
            event_type,
            f"it is {size} bytes of JSON and {EVENT_BYTES_MAX} is most; store large"
            " content elsewhere and its key here",
        )
    return text


def _checked(value: object, *, event_type: str, str_keys: bool) -> dict[str, Any]:
    try:
        data = plain(value, str_keys=str_keys)
        _check(data, "", 0)
    except (TypeError, _UnstorableError) as error:
        raise EventDataError(event_type, str(error)) from error
    except ValueError as error:  # a model of pydantic cannot serialize itself, and may quote why
        raise EventDataError(event_type, f"{type(error).__name__} while encoding it") from None
    except RecursionError as error:
        raise EventDataError(event_type, "it is nested too deep, or within itself") from error
    if not isinstance(data, dict):
        raise EventDataError(event_type, "it must be an object with named fields")
    return data


def decode_stored(stored: str | bytes, *, event_type: str, schema_version: int) -> Any:  # noqa: ANN401 -- JSON
    """Return stored JSON as it was appended.

    An integer of more than 63 bits was never appended as one: it was a float like 1e23 in a column
    of ``jsonb``, and becomes that again.

    Raises:
        EventShapeError: Python cannot read it; it was not appended by this library.
    """
    raw = stored.encode() if isinstance(stored, str) else stored
    try:
        decoded = msgspec.json.decode(raw)
        return _with_floats(decoded) if _LARGE_INTEGER.search(raw) else decoded
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
    message, cause = str(error), error.__cause__
    if cause is not None:  # the class itself refused what it was given, and may quote that
        message = message.replace(str(cause), f"{type(cause).__name__} of its class", 1)
    return _QUOTED.sub(r"\1", message)


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


# By exact type: to_builtins leaves only these, None and booleans.
_CHECKS: Final[dict[type, Callable[[Any, str, int], None]]] = {
    str: _check_text,
    int: _check_integer,
    float: _check_float,
    dict: _check_object,
    list: _check_array,
    tuple: _check_array,
}
