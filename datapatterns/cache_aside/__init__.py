"""Cache-aside: keep what was slow to load, and never keep what has become wrong.

`AsyncCache` lives in ``datapatterns.cache_aside.redis_cache_async``; it needs the ``async`` extra.
"""

from datapatterns.cache_aside.cached_function import CachedFunction
from datapatterns.cache_aside.counting import CacheStats
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.redis_cache import Cache
from datapatterns.cache_aside.relaying import RelayReport

__all__ = ["Cache", "CachePolicy", "CacheStats", "CachedFunction", "RelayReport"]
