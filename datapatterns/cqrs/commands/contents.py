"""What a command says: whether it fits its class, what its validators find, what it is known by."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Final, TypeAlias, cast

import msgspec

from datapatterns.errors import EventDataError
from datapatterns.event_sourcing.content.likeness import unlike_at
from datapatterns.event_sourcing.content.payload import encode_event, misfit
from datapatterns.event_sourcing.content.shapes import Decoder, encoder_of, is_model

KEY_BYTES_MAX: Final = 255
"""The longest idempotency key."""

Problems: TypeAlias = tuple[tuple[str, str], ...]
"""Pairs of a field and what is wrong with it."""

Validator: TypeAlias = Callable[[Any], Mapping[str, str] | Iterable[tuple[str, str]] | None]
"""Returns what is wrong with a command, by field; nothing if it may be executed."""

_PLACED: Final = " - at `$"


def misfits(command: object, encoded: str, decoder: Decoder) -> Problems:
    """Return where ``command`` is not what its class declares; classes do not look themselves."""
    try:
        read = decoder.decode(encoded)
    except msgspec.DecodeError as error:
        return tuple(_placed(misfit(error)))
    where = unlike_at(command, read, "")
    if where is None:
        return ()
    return ((where.removeprefix("."), "is not what the class declares, or JSON cannot hold it"),)


def encoded_command(name: str, command: object) -> tuple[str, Problems]:
    """Return a command as JSON, or why it has none."""
    try:
        return encode_event(command, event_type=name), ()
    except EventDataError as error:
        return "", (("", error.reason),)


def found_by(validators: Iterable[Validator], command: object) -> Problems:
    """Return what validators find wrong.

    Raises:
        TypeError: One returns something else.
    """
    return tuple(problem for validate in validators for problem in _pairs(validate(command)))


def key_problems(key: str | None) -> Problems:
    """Return what is wrong with an idempotency key; whoever sends the command has chosen it."""
    if key is None:
        return ()
    return tuple(("idempotency_key", problem) for problem in _faults(key))


def digest_of(command: object) -> bytes:
    """Return a digest that is the same for the same contents, in whatever process or order."""
    try:
        canonical = _canonical.encode(command)
    except (TypeError, ValueError):  # a model has values that only it can write
        cls: Any = type(command)
        written = encoder_of(cls)(command)
        canonical = _canonical.encode(msgspec.json.decode(written))
    return sha256(canonical).digest()


def _canonical_model(value: object) -> object:
    if not is_model(type(value)):
        raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
    # As Python's values: as JSON a set would be a list in the order of the day.
    return cast("Any", value).model_dump(by_alias=True, round_trip=True, warnings=False)


_canonical: Final = msgspec.json.Encoder(order="sorted", enc_hook=_canonical_model)


def _faults(key: object) -> Iterator[str]:
    if not isinstance(key, str):
        yield "must be text"
    elif not key or not key.isprintable():
        yield "must be printable text, and not empty"
    elif len(key.encode(errors="replace")) > KEY_BYTES_MAX:
        yield f"is longer than {KEY_BYTES_MAX} bytes"


def _placed(message: str) -> Iterator[tuple[str, str]]:
    for found in message.split("; "):
        what, _, place = found.partition(_PLACED)
        yield place.rstrip("`").removeprefix("."), what


def _pairs(found: object) -> Iterator[tuple[str, str]]:
    if found is None:
        return
    pairs = found.items() if isinstance(found, Mapping) else found
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise _misread(found)
    for pair in pairs:
        match pair:
            case (str(field), str(what)):
                yield field, what
            case _:
                raise _misread(found)


def _misread(found: object) -> TypeError:
    return TypeError(
        f"validate gave a {type(found).__name__}; return a mapping of fields to what is wrong with"
        " them, or yield such pairs, and return None if all is well"
    )
