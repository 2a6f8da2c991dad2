"""Name cache entries so that no two keys share one."""

import re
from collections.abc import Callable, Iterable
from datetime import date, datetime
from hashlib import blake2b
from typing import TypeAlias, TypeVar
from urllib.parse import unquote
from uuid import UUID

from datapatterns.errors import CacheKeyError, SettingsError

KeyPart: TypeAlias = int | str | bytes | bool | UUID | date | None
Key: TypeAlias = KeyPart | tuple[KeyPart, ...]
K = TypeVar("K", bound=Key)

_ENTRY_BYTES_MAX = 200
_IDENTICAL = frozenset({int, str, bytes, bool, UUID, date, type(None)})
_CACHE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")
# Braces would move the entry to another slot of a Redis cluster, colons separate parts.
_UNSAFE = re.compile(r"[^A-Za-z0-9_.@ -]")


def checked_name(name: str) -> str:
    """Return ``name`` if it can name a cache.

    Raises:
        CacheKeyError: It is not 1 to 60 of letters, digits and ``_.-``.
    """
    if not _CACHE_NAME.fullmatch(name):
        raise CacheKeyError(name, "a cache's name is 1 to 60 of letters, digits, _ . and -")
    return name


def checked_target(target: str) -> str:
    """Return ``target`` if what all keys in Redis begin with can be called so.

    Raises:
        SettingsError: It is not 1 to 60 of letters, digits and ``_.-``.
    """
    if not _CACHE_NAME.fullmatch(target):
        raise SettingsError(
            "prefix of keys in Redis", f"{target!r} is not 1 to 60 of letters, digits, _ . and -"
        )
    return target


def entry_of(name: str, key: Key) -> str:
    """Return the name of the entry that cache ``name`` keeps under ``key``.

    Different keys give different names, and a part's type belongs to the key: 5 and "5" are two
    entries. A tuple of one part is the key that this part is. So that every writer names the entry
    that every reader uses, values that are equal without being identical (floats, decimals,
    moments in different time zones) are refused. A name that would be long ends in a 128-bit hash.

    >>> entry_of("product", 5)
    'product:i5'
    >>> entry_of("price", ("a:b", 5))
    'price:sa%3Ab:i5'

    Raises:
        CacheKeyError: A part has a type that cannot be part of a key.
    """
    if type(key) is int:
        entry = f"{name}:i{key}"
    else:
        parts = key if isinstance(key, tuple) else (key,)
        entry = ":".join((name, *map(_encoded, parts)))
    if len(entry) <= _ENTRY_BYTES_MAX:
        return entry
    return f"{name}:#{blake2b(entry.encode(), digest_size=16).hexdigest()}"


def distinct(keys: Iterable[K]) -> list[K]:
    """Return ``keys``, each once, in their order.

    Raises:
        CacheKeyError: Two are equal in Python and not the same key, as 1 and True are: a dict has
            no place for the values of both.
    """
    first: dict[K, K] = {}
    for key in keys:
        known = first.setdefault(key, key)
        if known is not key and entry_of("", known) != entry_of("", key):
            raise CacheKeyError(key, f"it equals {known!r}, another key; ask for each by itself")
    return [*first]


def is_identical(part: object) -> bool:
    """Return whether what is of the same type and equal to ``part`` has the same name."""
    return type(part) in _IDENTICAL


def parts_in(entry: str) -> tuple[KeyPart, ...] | None:
    """Return the parts of an entry's key, None if only a hash of it is left.

    >>> parts_in(entry_of("price", ("a:b", 5))), parts_in(entry_of("price", None))
    (('a:b', 5), (None,))
    >>> parts_in(entry_of("price", "x" * 300))
    """
    _, *parts = entry.split(":")
    if any(part.startswith("#") for part in parts):
        return None
    return tuple(map(_decoded, parts))


def _decoded(part: str) -> KeyPart:
    kind, rest = part[:1], part[1:]
    decode: dict[str, Callable[[str], KeyPart]] = {
        "i": int,
        "s": unquote,
        "u": UUID,
        "b": bytes.fromhex,
        "d": date.fromisoformat,
    }
    if kind in decode:
        return decode[kind](rest)
    return {"T": True, "F": False}.get(kind)


def escaped(text: str) -> str:
    """Return ``text`` in letters that mean nothing in a key; different texts stay different.

    Raises:
        CacheKeyError: It is not valid Unicode.
    """
    return _UNSAFE.sub(_escaped, text)


def _encoded(part: object) -> str:
    match part:
        case bool():  # before int, of which it is a subclass
            encoded = "T" if part else "F"
        case int():
            encoded = f"i{int(part)}"
        case str():
            # An enum's own str() may be its name; it is equal to its value.
            encoded = f"s{escaped(str.__str__(part))}"
        case None:
            encoded = "N"
        case UUID():
            encoded = f"u{part.hex}"
        case bytes():
            encoded = f"b{part.hex()}"
        case date() if not isinstance(part, datetime):
            encoded = f"d{part.isoformat()}"
        case _:
            raise CacheKeyError(
                part, "use int, str, bytes, bool, UUID, date or None, or a tuple of them"
            )
    return encoded


def _escaped(unsafe: re.Match[str]) -> str:
    try:
        return "".join(f"%{byte:02X}" for byte in unsafe[0].encode())
    except UnicodeEncodeError:
        raise CacheKeyError(unsafe.string, "it is not valid Unicode") from None
