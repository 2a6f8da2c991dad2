"""Count what a cache does, for its owner and for the application's monitoring."""

from dataclasses import dataclass
from threading import Lock

from datapatterns.telemetry import Observer


@dataclass(slots=True)
class CacheStats:
    """How often what happened in this process since the cache was made.

    Attributes:
        hits: Values served from Redis, the stale and the negative ones included.
        local_hits: Values served from this process's own memory.
        negative: Of all hits from Redis, those of something that is not there.
        misses: Values that their readers loaded for themselves.
        stale: Values served past their time while another caller loaded anew.
        joined: Values that another caller of this process was about to have.
        loads: Values loaded from the database.
        replica_loads: Of these, those that its replica served.
        filled: Of those loaded, stored ones.
        refused: Those that were not stored because somebody had invalidated, or was about to.
        unstored: Those that were not stored for other reasons: too large, absent and not to be
            remembered, or read where it may have been older than an invalidation.
        busy: Loads that found no place in time while Redis was away.
        bypassed: Reads that did not ask Redis, because it was silent or not up to date.
        foreign: Stored bytes that no value could be read from.
        waits: Pauses while another process loaded.
        silences: Commands to which Redis gave no answer.
        openings: How often Redis was left alone after several of these, see `is_open`.
        invalidated: Entries that this process told Redis to forget.
        undelivered: Entries that it could not; the relay does.
        replayed: Entries that its relay rounds told Redis to forget.
        violations: Wrong entries that audits have found.
        outlived: Writes whose COMMIT took longer than their fence stood.
        is_open: Whether Redis is left alone now; once a second it is tried.
    """

    hits: int = 0
    local_hits: int = 0
    negative: int = 0
    misses: int = 0
    stale: int = 0
    joined: int = 0
    loads: int = 0
    replica_loads: int = 0
    filled: int = 0
    refused: int = 0
    unstored: int = 0
    busy: int = 0
    bypassed: int = 0
    foreign: int = 0
    waits: int = 0
    silences: int = 0
    openings: int = 0
    invalidated: int = 0
    undelivered: int = 0
    replayed: int = 0
    violations: int = 0
    outlived: int = 0
    is_open: bool = False

    @property
    def hit_ratio(self) -> float:
        """The share of reads that needed no load of their own; 0 if there were none."""
        served = self.hits + self.local_hits + self.joined
        return served / (served + self.loads) if served + self.loads else 0.0


class Counters:
    """Adds up, and tells the observer.

    Args:
        cache: The cache's name.
        observer: Where counts go.
    """

    def __init__(self, cache: str, observer: Observer) -> None:
        self._cache = cache
        self._observer = observer
        self._lock = Lock()
        self._stats = CacheStats()

    def add(self, what: str, amount: int = 1, **attributes: str) -> None:
        """Count that ``what`` happened; keys and values are no attributes."""
        with self._lock:
            setattr(self._stats, what, getattr(self._stats, what) + amount)
        self._observer.count(f"datapatterns.cache.{what}", amount, cache=self._cache, **attributes)

    def note(self, what: str, amount: int) -> None:
        """Count what the protocol has noticed."""
        # It refuses a fill for one reason.
        attributes = {"why": "lease"} if what == "refused" else {}
        self.add(what, amount, **attributes)

    def hit(self) -> None:
        """Count a hit; the same as ``add``, but on the hottest path."""
        with self._lock:
            self._stats.hits += 1
        self._observer.count("datapatterns.cache.hits", 1, cache=self._cache)

    def waited(self, seconds: float) -> None:
        """Tell how long a load waited for a place."""
        self._observer.duration("datapatterns.cache.queue", seconds, cache=self._cache)

    def opened(self, is_open: bool) -> None:  # noqa: FBT001 -- called with what is so by now
        """Take note that Redis is left alone from now on, or is not any more."""
        if is_open:
            self.add("openings")
        else:
            self._observer.count("datapatterns.cache.closings", 1, cache=self._cache)
        with self._lock:
            self._stats.is_open = is_open

    def loaded(self, values: int, seconds: float) -> None:
        """Count values that were loaded together, and how long it took."""
        self.add("loads", values)
        self._observer.duration("datapatterns.cache.load", seconds, cache=self._cache)

    def stats(self) -> CacheStats:
        """Return the counts so far."""
        with self._lock:
            return CacheStats(**{name: getattr(self._stats, name) for name in CacheStats.__slots__})
