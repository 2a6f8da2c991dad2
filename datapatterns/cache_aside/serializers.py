"""What makes bytes of values, and values of bytes: MessagePack, JSON, or functions of yours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from datapatterns.errors import SettingsError, UncacheableValueError

BuiltIn: TypeAlias = Literal["msgpack", "json"]
_BUILT_IN = ("msgpack", "json")
_UNREADABLE = (msgspec.MsgspecError, RecursionError, MemoryError, UnicodeDecodeError)
_UNWRITABLE = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
_as_msgpack = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True, eq=False)
class Serializer:
    """A pair of functions of yours, for `CachePolicy`.

    What ``decode`` returns is what callers are given, the first of them, too: it is not told which
    type was asked for. It must not run what the bytes say, as unpickling does: whoever can write to
    Redis could run code here.

    Attributes:
        name: What tells its bytes from others; another name for another version of them.
        encode: Returns the bytes of a value, which is never None. Its errors reach the caller.
        decode: Returns the value of the bytes. Its errors reach the caller whose value was just
            encoded; stored bytes that it raises for count as nothing.
    """

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    def __post_init__(self) -> None:
        """Refuse what would be mistaken for others' bytes.

        Raises:
            SettingsError: It has no name, or one that is taken, or no two functions.
        """
        name: object = self.name
        if not isinstance(name, str) or not name.strip() or name in _BUILT_IN:
            raise SettingsError("serializer", f"{self.name!r} is no name of its own; give it one")
        functions: tuple[object, ...] = (self.encode, self.decode)
        if not all(map(callable, functions)):
            raise SettingsError("serializer", "encode and decode are functions; give it both")


class Format(NamedTuple):
    """How values of one type become bytes.

    Attributes:
        name: Part of the fingerprint; empty for MessagePack, as ever.
        encode: Returns the bytes of a value.
        decode: Returns the value of bytes, or of a view on some.
        unwritable: What they raise for a value that cannot be stored.
        unreadable: What ``decode`` raises for bytes of others.
        is_typed: Whether what comes back is of the type that was asked for.
        is_lossless: Whether every value of the type comes back as it was.
    """

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes | memoryview], Any]
    unwritable: tuple[type[Exception], ...] = _UNWRITABLE
    unreadable: tuple[type[Exception], ...] = _UNREADABLE
    is_typed: bool = True
    is_lossless: bool = True


def format_of(serializer: BuiltIn | Serializer, value_type: object) -> Format:
    """Return how ``serializer`` makes bytes of values of this type."""
    if isinstance(serializer, Serializer):
        return _format_of_yours(serializer)
    if serializer == "json":
        encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(value_type).decode
        return Format("json", encode, decode, is_lossless=False)
    return Format("", _as_msgpack, msgspec.msgpack.Decoder(value_type).decode)


def checked_serializer(serializer: object) -> None:
    """Refuse what is no serializer.

    Raises:
        SettingsError: It is none.
    """
    if serializer not in _BUILT_IN and not isinstance(serializer, Serializer):
        raise SettingsError(
            "serializer", f"{serializer!r} is none; use 'msgpack', 'json' or a Serializer"
        )


def refuse_losses(value: object, returned: object) -> None:
    """Refuse a value that JSON has no word for: it writes NaN and infinities as null.

    Raises:
        UncacheableValueError: It came back as another.
    """
    # What is unequal to itself has the same bytes where nothing gets lost.
    if returned != value and _as_msgpack(returned) != _as_msgpack(value):
        raise UncacheableValueError(type(value).__name__, "JSON would give back another value")


def _format_of_yours(serializer: Serializer) -> Format:
    def encode(value: object) -> bytes:
        payload: object = serializer.encode(value)
        if not isinstance(payload, bytes):
            raise SettingsError(
                f"serializer {serializer.name}",
                f"encode returned {type(payload).__name__}; return bytes",
            )
        return payload

    # Whatever it raises for bytes that it did not write, they are no value.
    return Format(
        f"own {serializer.name}", encode, lambda payload: serializer.decode(bytes(payload)),
        unwritable=(), unreadable=(Exception,), is_typed=False,
    )  # fmt: skip
