"""How long values live, how long callers wait, and how much the database is asked at once."""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TypedDict

from datapatterns.cache_aside.compressing import require_zstandard
from datapatterns.cache_aside.serializers import BuiltIn, Serializer, checked_serializer
from datapatterns.errors import SettingsError

# Thirty years in seconds: in milliseconds, too, it fits what Redis and threads can count.
_MOST = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """The times and sizes that one cache lives by.

    Attributes:
        ttl_seconds: How long a value is fresh.
        stale_seconds: How long after that it may still be served while one caller loads anew.
        negative_seconds: How long it is remembered that there is nothing under a key.
        jitter: The share by which each of these times varies, so that what was stored together
            does not expire together.
        early_refresh: How eagerly a value that was slow to load is loaded anew before its time
            is up (the beta of XFetch); 0 never does.
        lease_seconds: How long one caller may take to load and still store what it loaded.
        wait_seconds: How long others wait for it before they load for themselves.
        redis_timeout_seconds: How long Redis may take to connect or to answer.
        loads_at_once: How many loads may run in this process at once while Redis is away.
        value_bytes_max: The largest stored value; larger ones are returned, not stored.
        vouched_seconds: How long hits are served after the last relay round. It bounds how long
            a value outlives a write whose process died before it could invalidate.
        fence_seconds: How long a strict writer's fence stands at most: longer than a COMMIT takes.
        local_bytes: How much memory each process may use to keep values beside Redis, told by it
            of every change; 0 keeps none.
        serializer: What makes bytes of values: ``msgpack``; ``json``, for others to read; or
            functions of yours. Caches whose serializers differ do not read each other's values.
        compress_bytes_min: How large a value is that is stored compressed, at least; 0 compresses
            none. Needs the extra ``compression``, as whoever reads does.
    """

    ttl_seconds: float = 300
    stale_seconds: float = 0
    negative_seconds: float = 30
    jitter: float = 0.1
    early_refresh: float = 1.0
    lease_seconds: float = 3
    wait_seconds: float = 3
    redis_timeout_seconds: float = 0.25
    loads_at_once: int = 8
    value_bytes_max: int = 1_048_576
    vouched_seconds: float = 10
    fence_seconds: float = 30
    local_bytes: int = 0
    serializer: BuiltIn | Serializer = "msgpack"
    compress_bytes_min: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense, where it is written.

        Raises:
            SettingsError: A value is negative, or zero where nothing would work, or endless, or no
                serializer.
            MissingExtraError: Values are to be compressed, which takes an extra.
        """
        may_be_zero = {
            "stale_seconds", "negative_seconds", "jitter", "early_refresh", "local_bytes",
            "compress_bytes_min",
        }  # fmt: skip
        checked_serializer(self.serializer)
        for field in fields(self):
            if field.name == "serializer":
                continue
            value = getattr(self, field.name)
            if not value >= 0 or (value == 0 and field.name not in may_be_zero):
                raise SettingsError(field.name, f"{value!r} is too small; use a positive number")
            if value > _MOST and field.name != "local_bytes":
                raise SettingsError(field.name, f"{value!r} is too large; stay below {_MOST:,}")
        if self.compress_bytes_min:
            require_zstandard()
        if self.loads_at_once != int(self.loads_at_once):
            raise SettingsError("loads_at_once", f"{self.loads_at_once!r} is no whole number")
        if self.jitter >= 1:
            raise SettingsError("jitter", f"{self.jitter!r} is a share of a time; stay below 1")


class ValueOptions(TypedDict, total=False):
    """What may differ from value to value of one cache; each means what it does in `CachePolicy`.

    Attributes:
        ttl_seconds: How long a value is fresh.
        stale_seconds: How long after that it may still be served while one caller loads anew.
        negative_seconds: How long it is remembered that there is nothing under a key.
        early_refresh: How eagerly a value that was slow to load is loaded anew.
    """

    ttl_seconds: float
    stale_seconds: float
    negative_seconds: float
    early_refresh: float


def layered(policy: CachePolicy, options: ValueOptions) -> CachePolicy:
    """Return ``policy`` with ``options`` in place of what it says itself.

    Raises:
        SettingsError: An option makes no sense, or is one of the whole cache.
    """
    return _replaced(policy, **options) if options else policy


# Those who name options name the same ones again and again.
@lru_cache(maxsize=256)
def _replaced(policy: CachePolicy, **options: float) -> CachePolicy:
    for name in options.keys() - ValueOptions.__annotations__.keys():
        is_of_caches = name in {field.name for field in fields(policy)}
        raise SettingsError(
            name,
            "it holds for the whole cache; say it in its CachePolicy"
            if is_of_caches
            else f"there is no option of this name; use {', '.join(ValueOptions.__annotations__)}",
        )
    return replace(policy, **options)  # type: ignore[arg-type]  # the names of floats alone


DEFAULT_POLICY = CachePolicy()
"""Five minutes, no stale values, three seconds to load."""
