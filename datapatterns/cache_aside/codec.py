"""Values as bytes: a header that says what they are and how long they are good, then the value.

Nothing is ever unpickled: whoever can write to Redis must not be able to run code here.
"""

import json
import math
import struct
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, TypeVar, cast

import msgspec

from datapatterns.cache_aside.compressing import CompressedValueError, compressed, decompressed
from datapatterns.cache_aside.policy import DEFAULT_POLICY, CachePolicy
from datapatterns.cache_aside.serializers import BuiltIn, Serializer, format_of, refuse_losses
from datapatterns.cache_aside.shared_values import is_atom, is_immutable
from datapatterns.errors import UncacheableValueError

T = TypeVar("T")

# Format, flags, milliseconds that the load took, soft expiry in milliseconds since 1970, and a
# fingerprint of the value's type.
_HEADER = struct.Struct("<BBHqI")
HEADER_BYTES = _HEADER.size
_FORMAT = 1
_NEGATIVE, _TAGGED, _COMPRESSED = 1, 2, 4
_KNOWN = _NEGATIVE | _TAGGED | _COMPRESSED
STAMP_BYTES = 8
TAGS_MAX = 255
_NO_STAMPS: tuple[bytes, ...] = ()
_TOOK_MS_MAX = 65_535
# exp(-20) of all draws are smaller than this many compute times: not worth a logarithm.
_EARLY_AT_MOST = 20


class Stored(NamedTuple, Generic[T]):
    """What was found under a key."""

    value: T
    soft_expiry_ms: int
    took_ms: int
    stamps: tuple[bytes, ...] = ()


class Packed(NamedTuple):
    """What to store, and for how long."""

    raw: bytes
    ttl_ms: int


class Codec(Generic[T]):
    """Turns values of one type into bytes and back; anything else it finds is no value at all.

    A value of another type, or of an older version of this one, has another fingerprint and is
    not read: two releases of an application can share a cache.

    Args:
        value_type: Of what type values are.
        serializer: What makes bytes of them.
        bytes_max: How large a compressed value may be.

    Attributes:
        decode: Makes a value of the bytes that `payload_in` returns.
    """

    __slots__ = (
        "_bytes_max",
        "_fingerprint",
        "_format",
        "_is_immutable",
        "_is_plain",
        "_unreadable",
        "decode",
    )

    def __init__(
        self,
        value_type: object,
        serializer: BuiltIn | Serializer = "msgpack",
        *,
        bytes_max: int = DEFAULT_POLICY.value_bytes_max,
    ) -> None:
        self._bytes_max = bytes_max
        self._format = form = format_of(serializer, value_type)
        self.decode = form.decode
        self._unreadable: tuple[type[Exception], ...] = (*form.unreadable, CompressedValueError)
        self._fingerprint = fingerprint_of(value_type, form.name)
        self._is_plain = value_type is Any and form.is_typed
        self._is_immutable = form.is_typed and is_immutable(value_type)

    def parse(self, raw: bytes) -> Stored[T] | None:
        """Return what ``raw`` holds, or None if it was not written by this codec."""
        if len(raw) < HEADER_BYTES:
            return None
        form, flags, took_ms, soft_expiry_ms, fingerprint = _HEADER.unpack_from(raw)
        if form != _FORMAT or fingerprint != self._fingerprint:
            return None
        begin, stamps = HEADER_BYTES, _NO_STAMPS
        if flags & _TAGGED:
            begin, stamps = _stamps_in(raw)
        if flags & ~_KNOWN or begin > len(raw):
            return None  # a later version's, or cut off
        if flags & _NEGATIVE:
            return Stored(cast("T", None), soft_expiry_ms, took_ms, stamps)
        payload = memoryview(raw)[begin:]
        try:
            value = self.decode(self._whole(payload) if flags & _COMPRESSED else payload)
        except self._unreadable:
            return None
        return Stored(cast("T", value), soft_expiry_ms, took_ms, stamps)

    def payload_in(self, raw: bytes) -> bytes:
        """Return the bytes of the value in what `parse` can read."""
        _, flags, *_ = _HEADER.unpack_from(raw)
        begin = _stamps_in(raw)[0] if flags & _TAGGED else HEADER_BYTES
        return self._whole(raw[begin:]) if flags & _COMPRESSED else raw[begin:]

    def _whole(self, frame: bytes | memoryview) -> bytes:
        return decompressed(frame, bytes_max=self._bytes_max)

    def can_be_shared(self, value: T) -> bool:
        """Return whether no caller can change what others are given, too."""
        return self._is_immutable or is_atom(value)

    def canonical(self, value: T) -> tuple[T, bytes]:
        """Return ``value`` as a later hit will return it, and its bytes.

        So the first caller gets what the second gets: a value that would come back as another
        type fails here, not on a day when the cache is warm.

        Raises:
            UncacheableValueError: It cannot be encoded, or does not come back as its type.
            Exception: Functions of the caller's own raise it.
        """
        if value is None:
            return value, b""
        try:
            payload = self._format.encode(value)
            canonical = cast("T", self.decode(payload))
            if not self._format.is_lossless:
                refuse_losses(value, canonical)
        except self._format.unwritable as error:
            raise UncacheableValueError(type(value).__name__, str(error)) from error
        # Without a type to decode into, tuples come back as lists and objects as dicts.
        if self._is_plain and canonical != value:
            raise UncacheableValueError(type(value).__name__, "it would come back as plain data")
        return canonical, payload

    def pack(  # noqa: PLR0913 -- what was loaded, and each thing that is impure
        self, value: T, payload: bytes, *, took_ms: float, now_ms: float, policy: CachePolicy,
        jitter: float, stamps: tuple[bytes, ...] = (),
    ) -> Packed | None:  # fmt: skip
        """Return the bytes to store, or None if they are too many or not to be kept.

        Args:
            value: What ``canonical`` returned, with its ``payload``.
            payload: The bytes of the value.
            took_ms: How long the load took.
            now_ms: Milliseconds since 1970.
            policy: The times to live by.
            jitter: A draw between -1 and 1.
            stamps: Those that the value's tags had before it was loaded.
        """
        absent = value is None
        fresh = policy.negative_seconds if absent else policy.ttl_seconds
        named = bytes([len(stamps)]) + b"".join(stamps) if stamps else b""
        # By what it is before it is compressed: else nobody could tell it from a bomb.
        if fresh == 0 or HEADER_BYTES + len(named) + len(payload) > policy.value_bytes_max:
            return None
        smaller = None
        if 0 < policy.compress_bytes_min <= len(payload):
            smaller = compressed(payload)
        factor = 1000 * (1 + policy.jitter * jitter)
        stale = 0 if absent else policy.stale_seconds
        header = _HEADER.pack(
            _FORMAT,
            (_NEGATIVE if absent else 0)
            | (_TAGGED if stamps else 0)
            | (0 if smaller is None else _COMPRESSED),
            min(round(took_ms), _TOOK_MS_MAX),
            round(now_ms + fresh * factor),
            self._fingerprint,
        )
        body = named + (payload if smaller is None else smaller)
        return Packed(header + body, max(1, round((fresh + stale) * factor)))


def _stamps_in(raw: bytes) -> tuple[int, tuple[bytes, ...]]:
    """Return where the payload of a tagged value begins, and its stamps."""
    begin = HEADER_BYTES + 1
    end = begin + STAMP_BYTES * raw[HEADER_BYTES] if len(raw) > HEADER_BYTES else begin
    places = range(begin, end, STAMP_BYTES)
    return end, tuple(raw[place : place + STAMP_BYTES] for place in places)


def fresh_until_ms(soft_expiry_ms: int, took_ms: int, early_refresh: float) -> float:
    """Return until when a value needs no second thought, whatever is drawn."""
    return soft_expiry_ms - took_ms * early_refresh * _EARLY_AT_MOST


def is_due(
    soft_expiry_ms: int, took_ms: int, *, now_ms: float, early_refresh: float, uniform: float
) -> bool:
    """Return whether this caller should load the value anew, though it is still there.

    The longer the load took, the earlier somebody does, and seldom two at once.

    Source: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention"
    (2015).

    Args:
        soft_expiry_ms: Until when the value is fresh.
        took_ms: How long it took to load.
        now_ms: Milliseconds since 1970.
        early_refresh: The beta of the source.
        uniform: A draw above 0, at most 1.
    """
    return now_ms - took_ms * early_refresh * math.log(uniform) >= soft_expiry_ms


def fingerprint_of(value_type: object, form: str = "") -> int:
    """Return 32 bits that change when the shape of ``value_type`` changes, or how it is written."""
    try:
        shape: object = msgspec.json.schema(value_type)
    except TypeError:  # a type of the user's own that msgspec has no schema for
        shape = repr(value_type)
    told = json.dumps([form, shape] if form else shape, sort_keys=True)
    digest = blake2b(told.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
