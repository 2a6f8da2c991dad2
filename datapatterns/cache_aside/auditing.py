"""Compare what is in the cache with the database, and be sure of what is called wrong.

An entry may differ because an invalidation is on its way. So what was fetched is compared with a
value that is loaded after, then a relay round sends whatever had committed by then: an entry that
is still the same bytes should have gone. (After Polaris, the auditor of Meta's caches, 2022.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine

from datapatterns.cache_aside.backing import Backing
from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.keys import Key, KeyPart, parts_in
from datapatterns.cache_aside.redis_commands import ENTRIES_PER_CALL, answer_to, command_for
from datapatterns.cache_aside.standing import Standing
from datapatterns.cache_aside.status import scanned
from datapatterns.cache_aside.steps import CacheSilence, Fetch, Fetched, Wanted
from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import ServerUnavailableError

S = TypeVar("S")
T = TypeVar("T")

LoadKeys: TypeAlias = Callable[[Sequence[Key]], Mapping[Key, T]]

_TURN_SECONDS = 0.05
_TURNS_MAX = 200


@dataclass(frozen=True, slots=True)
class CacheViolation(Generic[T]):
    """An entry that should have been forgotten.

    Attributes:
        key: Its key.
        cached: What it says.
        loaded: What the database says.
    """

    key: Key
    cached: T
    loaded: T


@dataclass(frozen=True, slots=True)
class CacheAudit(Generic[T]):
    """What an audit has found.

    Attributes:
        checked: How many entries were compared.
        skipped: How many were not: past their time, under another's tags or of another release,
            or with a key that only a hash is left of.
        violations: Those that are wrong.
    """

    checked: int
    skipped: int
    violations: tuple[CacheViolation[T], ...]


@dataclass(frozen=True, slots=True)
class Auditor(Generic[T]):
    """Audits the entries of one cached function.

    Attributes:
        backing: What its cache stands on.
        codec: What its values are decoded by.
        wanted: The entry of a key, with its tags.
        load: Loads the values of keys, by statements that begin when it is called.
        clock: What a turn of another relay is waited by.
    """

    backing: Backing
    codec: Codec[T]
    wanted: Callable[[Key], Wanted]
    load: LoadKeys[T]
    clock: Clock = SYSTEM_CLOCK

    def audit(self, limit: int, on_checked: Callable[[int], object]) -> CacheAudit[T]:
        """Compare at most ``limit`` entries; ``on_checked`` is told of how many more were.

        Raises:
            ServerUnavailableError: Redis did not answer, or no relay round could be run.
        """
        standing = self.backing.gate.standing()
        if standing is None:
            raise ServerUnavailableError("Redis", "its hits are not served at the moment")
        checked = skipped = 0
        suspects: list[tuple[Key, bytes, T, T]] = []
        try:
            for keys in _portions(islice(self._keys(standing), limit)):
                known = [key[0] if len(key) == 1 else key for key in keys if key is not None]
                alive = self._alive(standing, known)
                skipped += len(keys) - len(alive)
                checked += len(alive)
                suspects += self._differing(alive)
                on_checked(len(keys))
            violations = tuple(self._confirmed(standing, suspects)) if suspects else ()
        except CacheSilence as silence:
            raise ServerUnavailableError("Redis", str(silence)) from silence
        if violations:
            self.backing.counters.add("violations", len(violations))
        return CacheAudit(checked, skipped, violations)

    def _keys(self, standing: Standing) -> Iterator[tuple[KeyPart, ...] | None]:
        """Return the keys of all entries by part; None for one that only a hash is left of."""
        begin = f"{standing.prefix}value:{{"
        pattern = f"{_literally(begin + self.backing.name)}:*"
        seen = set[bytes]()
        for place in self.backing.links.places(standing.server):
            for names in scanned(self.backing.links, place, pattern):
                # A key may be returned twice.
                fresh = [name for name in names if name not in seen]
                seen.update(fresh)
                for name in fresh:
                    yield parts_in(name.decode().removeprefix(begin).removesuffix("}"))

    def _fetch(self, standing: Standing, keys: Sequence[Key]) -> Sequence[Fetched]:
        if not keys:
            return []
        step = Fetch(tuple(map(self.wanted, keys)))
        command = command_for(step, prefix=standing.prefix, policy=self.backing.policy)
        reply = self.backing.links.call(command, identity=standing.server)
        answer: Any = answer_to(step, reply)
        return list(answer)

    def _alive(self, standing: Standing, keys: Sequence[Key]) -> list[tuple[Key, bytes, T]]:
        found = []
        for key, fetched in zip(keys, self._fetch(standing, keys), strict=True):
            stored = self.backing.served(self.codec, fetched)
            if stored is not None and fetched.raw is not None:
                found.append((key, fetched.raw, stored.value))
        return found

    def _differing(self, alive: Sequence[tuple[Key, bytes, T]]) -> list[tuple[Key, bytes, T, T]]:
        """Load what is alive, by statements that begin after it was fetched."""
        found = []
        loaded_by_key = self.load([key for key, _, _ in alive]) if alive else {}
        for key, raw, cached in alive:
            loaded, _ = self.codec.canonical(loaded_by_key[key])
            # Not a number is unequal to itself, and a set has no certain order of bytes.
            if loaded != cached and self._bytes(loaded) != self._bytes(cached):
                found.append((key, raw, cached, loaded))
        return found

    def _bytes(self, value: T) -> bytes:
        _, payload = self.codec.canonical(value)
        return payload

    def _confirmed(
        self, standing: Standing, suspects: Sequence[tuple[Key, bytes, T, T]]
    ) -> Iterator[CacheViolation[T]]:
        self._settle()
        if self.backing.gate.last_standing != standing:
            return  # all of these have just been forgotten, under keys that nobody reads any more
        for some in _portions(iter(suspects)):
            fetched = self._fetch(standing, [key for key, *_ in some])
            for (key, raw, cached, loaded), now in zip(some, fetched, strict=True):
                # A value that was stored anew has another time of expiry.
                if now.raw == raw and self.backing.served(self.codec, now) is not None:
                    yield CacheViolation(key, cached, loaded)

    def _settle(self) -> None:
        """Run a relay round of our own: what has committed is known in Redis after it."""
        for _ in range(_TURNS_MAX):
            if self.backing.relay().is_leading:
                return
            self.clock.sleep(_TURN_SECONDS)
        raise ServerUnavailableError("the cache relay", "another process is at it all the time")


def loading_on(engine: Engine, load: Callable[[Connection, Key], T]) -> LoadKeys[T]:
    """Return what loads keys one by one, each as it is committed by then."""

    def load_keys(keys: Sequence[Key]) -> dict[Key, T]:
        with engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT")
            return {key: load(conn, key) for key in keys}

    return load_keys


def nobody(_: int, /) -> None:
    """Tell nobody how far an audit is."""


def _portions(items: Iterator[S]) -> Iterator[list[S]]:
    while some := list(islice(items, ENTRIES_PER_CALL)):
        yield some


def _literally(text: str) -> str:
    """Return a pattern of Redis that means ``text``."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^-" else letter for letter in text)
