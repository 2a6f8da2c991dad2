"""A backend for ``dogpile.cache``: its regions, with a lock that cannot be left behind.

``make_region().configure("datapatterns.cache_aside", arguments={"url": "redis://..."})``
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec
from dogpile.cache.api import NO_VALUE, BytesBackend, CantDeserializeException
from redis import Redis
from redis.connection import ConnectionPool

from datapatterns.breaker import Breaker
from datapatterns.cache_aside.codec import fingerprint_of
from datapatterns.cache_aside.keys import checked_target, entry_of
from datapatterns.cache_aside.lease_mutex import Claim, LeaseMutex, storing
from datapatterns.cache_aside.links import Links
from datapatterns.cache_aside.redis_commands import ENTRIES_PER_CALL, value_key
from datapatterns.cache_aside.redis_sources import one_server
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.errors import ServerUnavailableError, SettingsError, UncacheableValueError
from datapatterns.urls import checked_redis_url

logger = logging.getLogger(__name__)

LEASE_SECONDS: Final = 30.0
"""How long a creator may take unless ``lock_timeout`` says otherwise."""

TIMEOUT_SECONDS: Final = 0.25
"""How long Redis may take to answer unless ``socket_timeout`` says otherwise."""

_FINGERPRINT_BYTES: Final = 4
_CLIENT_ARGUMENTS: Final = ("ssl", "socket_keepalive", "socket_keepalive_options")
_HOST_ARGUMENTS: Final = ("host", "port", "db", "username", "password")
_OWN_ARGUMENTS: Final = (
    *("connection_kwargs", "connection_pool", "distributed_lock", "key_prefix", "lock_timeout"),
    *("lock_blocking_timeout", "redis_expiration_time", "socket_timeout", "url", "value_type"),
)


class DogpileBackend(BytesBackend):
    """Keeps the values of a ``dogpile.cache`` region in Redis or Valkey.

    The lock of a key is a lease that every process respects and that ends by itself. What a
    creator returns is stored only while its lease stands; ``delete`` and ``set`` of others take it
    away. So no value that was read before a ``delete`` is stored after it. This holds for
    ``get_or_create``, ``get_or_create_multi`` and their decorators, also with an
    ``async_creation_runner``; not for ``refresh``, which takes no lock.

    While Redis is silent, reads find nothing and creators run one at a time per key and process;
    ``delete`` and ``set`` raise, for an old value may still be there.

    Args:
        arguments: Those of ``dogpile.cache.redis`` of the same name: ``url`` or ``host``,
            ``port``, ``db``, ``username``, ``password``, ``ssl``; ``connection_pool``,
            ``connection_kwargs``; ``redis_expiration_time`` in seconds, by default none;
            ``socket_timeout``, 0.25 s; ``lock_timeout``, 30 s; ``lock_blocking_timeout``, by
            default none. And ``key_prefix``, with which all keys begin; ``value_type``, what
            values are decoded as, by default plain data. Others are logged and ignored.

    Raises:
        SettingsError: An argument cannot be used.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        known = {*_CLIENT_ARGUMENTS, *_HOST_ARGUMENTS, *_OWN_ARGUMENTS}
        if unknown := sorted(arguments.keys() - known):
            logger.warning("arguments without a meaning here: %s", ", ".join(unknown))
        if not arguments.get("distributed_lock", True):
            raise SettingsError(
                "distributed_lock", "the lock keeps old values out; leave the argument out"
            )
        self._lease_seconds = _seconds(arguments, "lock_timeout", LEASE_SECONDS)
        self._wait_seconds = _seconds(arguments, "lock_blocking_timeout", None)
        life_seconds = _seconds(arguments, "redis_expiration_time", None)
        self._life_ms = 0 if life_seconds is None else max(1, round(life_seconds * 1000))
        timeout_seconds = _seconds(arguments, "socket_timeout", TIMEOUT_SECONDS)
        assert timeout_seconds is not None
        self._prefix = f"{checked_target(arguments.get('key_prefix', 'datapatterns'))}:dogpile:"
        self._links = Links(
            one_server(_redis_of(arguments), timeout_seconds=timeout_seconds),
            timeout_seconds=timeout_seconds,
            breaker=Breaker(SYSTEM_CLOCK.monotonic),
            on_silence=lambda: None,
        )
        values = _Values(arguments.get("value_type", Any))
        self.serializer, self.deserializer = values.serialize, values.deserialize
        self._mutexes: WeakValueDictionary[str, LeaseMutex] = WeakValueDictionary()
        self._making = Lock()

    def has_lock_timeout(self) -> bool:
        """Return whether a lock may end before its holder is ready: it may."""
        return True

    def get_mutex(self, key: str) -> LeaseMutex:
        """Return the lock of ``key``, one for all threads of this process."""
        lease_key = self._lease_key(key)
        with self._making:
            mutex = self._mutexes.get(lease_key)
            if mutex is None:
                assert self._lease_seconds is not None
                mutex = self._mutexes[lease_key] = LeaseMutex(
                    self._links,
                    lease_key,
                    lease_seconds=self._lease_seconds,
                    wait_seconds=self._wait_seconds,
                    clock=SYSTEM_CLOCK,
                )
            return mutex

    def get_serialized(self, key: str) -> Any:  # noqa: ANN401 -- dogpile's own marker
        """Return the bytes under ``key``, or NO_VALUE."""
        [found] = self.get_serialized_multi([key])
        return found

    def get_serialized_multi(self, keys: Iterable[str]) -> Sequence[Any]:
        """Return the bytes under each of ``keys``, or NO_VALUE; one round trip for 500."""
        found: list[object] = []
        for some in _portions([*keys]):
            try:
                reply = self._links.call(("MGET", *map(self._value_key, some)))
            except CacheSilence:
                reply = None
            are_complete = isinstance(reply, list) and len(reply) == len(some)
            found += reply if are_complete and isinstance(reply, list) else [None] * len(some)
        return [raw if isinstance(raw, bytes) else NO_VALUE for raw in found]

    def set_serialized(self, key: str, value: bytes) -> None:
        """Keep ``value``, see `set_serialized_multi`."""
        self.set_serialized_multi({key: value})

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        """Keep values; those that were loaded under a lease only while it stands.

        One round trip for 500.

        Raises:
            ServerUnavailableError: Redis did not answer, and older values may still be there.
        """
        claimed = [(key, self._claim(key), value) for key, value in mapping.items()]
        storable = [
            (self._value_key(key), self._lease_key(key), claim, value)
            for key, claim, value in claimed
            if claim.token is not None
        ]
        refused = len(claimed) - len(storable)
        for some in _portions(storable):
            try:
                outcomes = self._links.call(storing(some, life_ms=self._life_ms))
            except CacheSilence as silence:
                if any(claim.token == "" for _, _, claim, _ in some):
                    raise ServerUnavailableError("Redis", str(silence)) from silence
                outcomes = None  # what the creator returned is returned all the same
            refused += outcomes.count(0) if isinstance(outcomes, list) else len(some)
        if refused:
            logger.info(
                "values are not kept: they may be older than a delete", extra={"values": refused}
            )

    def delete(self, key: str) -> None:
        """Forget ``key``, and let nothing be stored that is being loaded; see `delete_multi`."""
        self.delete_multi([key])

    def delete_multi(self, keys: Iterable[str]) -> None:
        """Forget ``keys``, and let nothing be stored that is being loaded for them.

        One round trip for 500.

        Raises:
            ServerUnavailableError: Redis did not answer; old values may still be there.
        """
        for some in _portions([*keys]):
            names = [name for key in some for name in (self._value_key(key), self._lease_key(key))]
            try:
                self._links.call(("UNLINK", *names))
            except CacheSilence as silence:
                raise ServerUnavailableError("Redis", str(silence)) from silence

    def close(self) -> None:
        """Close idle connections to Redis; the backend can still be used."""
        self._links.close()

    def _claim(self, key: str) -> Claim:
        mutex = self._mutexes.get(self._lease_key(key))
        return Claim("", keeps_lease=False) if mutex is None else mutex.claim()

    def _value_key(self, key: str) -> str:
        return value_key(self._prefix, entry_of("", key))

    def _lease_key(self, key: str) -> str:
        return f"{self._prefix}lease:{{{entry_of('', key)}}}"


class _Values:
    """Values as MessagePack, behind a fingerprint of their type."""

    def __init__(self, value_type: object) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(value_type).decode
        self._beginning = fingerprint_of(value_type).to_bytes(_FINGERPRINT_BYTES, "little")

    def serialize(self, value: object) -> bytes:
        """Return ``value`` as bytes.

        Raises:
            UncacheableValueError: It would not come back as it is.
        """
        try:
            payload = self._encode(value)
            returned: object = self._decode(payload)
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
            raise UncacheableValueError(type(value).__name__, str(error)) from error
        # What is not a number is unequal to itself.
        if returned != value and repr(returned) != repr(value):
            raise UncacheableValueError(
                type(value).__name__, f"it would come back as {type(returned).__name__}"
            )
        return self._beginning + payload

    def deserialize(self, raw: bytes) -> object:
        """Return the value of ``raw``.

        Raises:
            CantDeserializeException: It is of another type, or of an older shape of this one.
        """
        if not raw.startswith(self._beginning):
            raise CantDeserializeException
        try:
            value: object = self._decode(raw[_FINGERPRINT_BYTES:])
        except (msgspec.MsgspecError, RecursionError, MemoryError, UnicodeDecodeError) as error:
            raise CantDeserializeException from error
        return value


def _redis_of(arguments: Mapping[str, Any]) -> str | Redis:
    if (pool := arguments.get("connection_pool")) is not None:
        return Redis(connection_pool=pool)
    further = dict(arguments.get("connection_kwargs", {}))
    further |= {name: arguments[name] for name in _CLIENT_ARGUMENTS if name in arguments}
    if (url := arguments.get("url")) is None:
        hosts = {name: arguments[name] for name in _HOST_ARGUMENTS if name in arguments}
        return Redis(**hosts | further)
    if not further:
        return str(url)  # checked where it is used
    try:
        pool = ConnectionPool.from_url(checked_redis_url(url, "url"), **further)
        pool.connection_class(**pool.connection_kwargs)  # does not connect
    except (TypeError, ValueError):
        # What they say may quote the password.
        raise SettingsError("connection_kwargs", "they do not suit the URL") from None
    return Redis(connection_pool=pool)


def _seconds(arguments: Mapping[str, Any], name: str, default: float | None) -> float | None:
    value = arguments.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise SettingsError(name, f"{value!r} is no positive number of seconds")
    return float(value)


def _portions(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), ENTRIES_PER_CALL):
        yield items[start : start + ENTRIES_PER_CALL]
