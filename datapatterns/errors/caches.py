"""Cache-aside."""

from datapatterns.errors.families import ConfigurationError, UnavailableError


class CacheKeyError(ConfigurationError):
    """This cannot name a cache or one of its entries.

    Attributes:
        part: What cannot be part of the name.
    """

    def __init__(self, part: object, advice: str) -> None:
        super().__init__(f"{part!r} cannot name a cache entry: {advice}")
        self.part = repr(part)
        self.advice = advice


class UncacheableValueError(ConfigurationError):
    """A loader returned what does not come back from a cache as the same type.

    Attributes:
        value_type: The name of its type.
        reason: What encoding or decoding it said.
    """

    def __init__(self, value_type: str, reason: str) -> None:
        super().__init__(
            f"a value of type {value_type} cannot be cached: {reason}; return a dataclass, a"
            " msgspec.Struct or plain data, and name its type"
        )
        self.value_type = value_type
        self.reason = reason


class UnknownRowsError(ConfigurationError):
    """A statement writes rows that cache entries are made from, without saying which.

    Attributes:
        table: The table that it writes.
    """

    def __init__(self, table: str) -> None:
        super().__init__(
            f"this statement writes rows of {table} that a cache watches; say which by"
            " execution_options(cache_keys=[...]), an empty list if none is cached"
        )
        self.table = table


class UnfencedWriteError(UnavailableError):
    """A writer of a strict cache was not let commit: Redis did not put its fence up.

    The transaction was rolled back.

    Attributes:
        cache: The name of the cache.
    """

    def __init__(self, cache: str) -> None:
        super().__init__(
            f"strict cache {cache!r} got no fence from Redis, so the transaction was rolled back;"
            " retry it, or write through a cache without strict=True, which never needs Redis"
        )
        self.cache = cache


class CacheBusyError(UnavailableError):
    """The database was busy with other loads for as long as this one could wait.

    Attributes:
        waited_seconds: How long it waited.
    """

    def __init__(self, *, waited_seconds: float) -> None:
        super().__init__(
            f"no load could begin within {waited_seconds:g} s; retry later, or raise loads_at_once"
        )
        self.waited_seconds = waited_seconds


class UncacheableQueryError(ConfigurationError):
    """What the result of a query depends on cannot be derived from it.

    Attributes:
        clause: What stands in the way.
    """

    def __init__(self, clause: str, advice: str) -> None:
        super().__init__(f"nobody can tell when this result becomes wrong: {clause}; {advice}")
        self.clause = clause
        self.advice = advice
