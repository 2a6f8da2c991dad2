"""Cache-aside: keep what was slow to load, and never keep what has become wrong."""

from typing import TYPE_CHECKING

from datapatterns.cache_aside.auditing import CacheAudit, CacheViolation
from datapatterns.cache_aside.cache_relay import CacheRelay
from datapatterns.cache_aside.cached_function import CachedFunction
from datapatterns.cache_aside.counting import CacheStats
from datapatterns.cache_aside.policy import CachePolicy, ValueOptions
from datapatterns.cache_aside.redis_cache import Cache
from datapatterns.cache_aside.relaying import RelayReport
from datapatterns.cache_aside.serializers import Serializer
from datapatterns.cache_aside.status import FollowedTable, RelayStatus
from datapatterns.cache_aside.tags import TAGGED, tag

if TYPE_CHECKING:
    from datapatterns.cache_aside.dogpile_backend import DogpileBackend
    from datapatterns.cache_aside.redis_cache_async import AsyncCache

__all__ = [
    "TAGGED",
    "AsyncCache",
    "Cache",
    "CacheAudit",
    "CachePolicy",
    "CacheRelay",
    "CacheStats",
    "CacheViolation",
    "CachedFunction",
    "DogpileBackend",
    "FollowedTable",
    "RelayReport",
    "RelayStatus",
    "Serializer",
    "ValueOptions",
    "tag",
]


def __getattr__(name: str) -> object:
    # Only those who use it need the async extra, or the one for dogpile.cache.
    if name == "AsyncCache":
        from datapatterns.cache_aside.redis_cache_async import AsyncCache  # noqa: PLC0415

        return AsyncCache
    if name == "DogpileBackend":
        return _dogpile_backend()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _dogpile_backend() -> object:
    try:
        from datapatterns.cache_aside.dogpile_backend import DogpileBackend  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "dogpile.cache is missing; install the extra: pip install 'datapatterns[dogpile]'",
            name=error.name,
        ) from error
    return DogpileBackend
