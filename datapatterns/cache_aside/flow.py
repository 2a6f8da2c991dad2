"""The cache-aside protocol without I/O: what to do next, given the answers so far.

There is a driver for threads, one for asyncio and, in the tests, one that plays any interleaving.
One flow reads any number of entries: each step is one round trip for all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from datapatterns.cache_aside.codec import HEADER_BYTES, Codec, Stored, is_due
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.steps import (
    Acquire,
    Answer,
    Ask,
    CacheSilence,
    Fetch,
    Fetched,
    Fill,
    Filling,
    Flow,
    Found,
    Granted,
    Load,
    Loaded,
    Look,
    Note,
    Outcome,
    Pause,
    Release,
    Stamp,
    Stamped,
    Taken,
    Wanted,
    Writers,
    ask,
)
from datapatterns.change_log.snapshots import Xid

T = TypeVar("T")

_PAUSE_MS_FIRST, _PAUSE_MS_MAX = 5.0, 50.0
_ACQUIRE_AT_MOST = 1_000


def read_through(
    wanted: Sequence[Wanted],
    *,
    codec: Codec[T],
    policy: CachePolicy,
    token: str,
    anew: bool = False,
    with_writers: bool = False,
) -> Flow[list[Outcome[T]]]:
    """Return the stored values, or load and store for others what is missing.

    A value that was loaded before an invalidation is never stored after it: invalidating takes
    the lease away, and only its holder can store. The price: while one caller loads, the others
    wait, at most ``policy.wait_seconds``. A value with tags is stored with their stamps of before
    the load, and served only as long as they are the same: invalidating a tag removes its stamp.

    Source: Nishtala et al., "Scaling Memcache at Facebook" (2013), section 3.2.1.

    Args:
        wanted: The entries, each once.
        codec: What tells a value from what others left there.
        policy: The times to live by.
        token: A name for this call that no other call has.
        anew: Whether a value that is there is replaced, however fresh it is.
        with_writers: Whether loads are told whose writes must show: a replica may lag behind.
    """
    reading = _Reading(wanted, codec, policy, token, anew, with_writers)
    with suppress(CacheSilence):
        yield from reading.ask_the_cache()
    # Redis is silent, fenced, or whoever holds a lease is slow or dead. Each may cost the caller
    # time, but never the answer; what is loaded without a lease is not stored.
    return (yield from reading.load_the_rest())


def read_in_snapshot(
    wanted: Wanted, *, codec: Codec[T], policy: CachePolicy, token: str, may_hit: bool
) -> Flow[list[Outcome[T]]]:
    """Load for a transaction that sees one moment, and store for others what is not too old.

    Nobody is waited for: the transaction is open, and may hold locks.

    Args:
        wanted: The entry.
        codec: What tells a value from what others left there.
        policy: The times to live by.
        token: A name for this call that no other call has.
        may_hit: Whether a stored value will do, though it may be newer than the moment.
    """
    reading = _Reading((wanted,), codec, policy, token, with_writers=True)
    with suppress(CacheSilence):
        yield from reading.load_for_others(may_hit=may_hit)
    return (yield from reading.load_the_rest())


@dataclass(slots=True)
class _Reading(Generic[T]):
    """One call's way through the protocol."""

    wanted: Sequence[Wanted]
    codec: Codec[T]
    policy: CachePolicy
    token: str
    anew: bool = False
    with_writers: bool = False
    outcomes: dict[int, Outcome[T]] = field(default_factory=dict)
    waited_ms: float = 0.0
    pause_ms: float = _PAUSE_MS_FIRST
    replaced: dict[int, bytes | None] = field(default_factory=dict)

    def missing(self) -> tuple[int, ...]:
        """Return which of the wanted entries have no value yet."""
        return tuple(place for place in range(len(self.wanted)) if place not in self.outcomes)

    def ask_the_cache(self) -> Flow[None]:
        """Find values, or load those whose lease is granted, until nothing more can be done."""
        places = self.missing()
        found = yield from self._fetch(places)
        if self.anew:
            self.replaced = {place: fetched.raw for place, fetched in found.items()}
        for _ in range(_ACQUIRE_AT_MOST):
            usable = yield from self._serve(places, found)
            places = tuple(place for place in places if place not in self.outcomes)
            if not places:
                return
            asks = tuple(
                Ask(self.wanted[place].entry, (found[place].raw or b"")[:HEADER_BYTES])
                for place in places
            )
            answers = yield from ask(Acquire(asks, self.token, self.with_writers))
            by_place = dict(zip(places, answers, strict=True))
            found = yield from self._answered(by_place, usable, found)
            places = tuple(found)
            if not places:
                return

    def load_for_others(self, *, may_hit: bool) -> Flow[None]:
        """Load the one entry if its lease is granted at once."""
        found = {0: Fetched(None)}
        if may_hit:
            found = yield from self._fetch((0,))
            yield from self._serve((0,), found)
        if not self.outcomes:
            asked = Ask(self.wanted[0].entry, (found[0].raw or b"")[:HEADER_BYTES])
            [answer] = yield from ask(Acquire((asked,), self.token, with_writers=True))
            if isinstance(answer, Granted):
                yield from self._load_and_fill({0: answer})

    def load_the_rest(self) -> Flow[list[Outcome[T]]]:
        """Load what is missing without storing it, and return all."""
        if missing := self.missing():
            loaded = yield from ask(Load(missing, (None,) * len(missing), leased=False))
            for place, one in zip(missing, loaded, strict=True):
                self.outcomes[place] = Outcome(one.value, "loaded")
        return [self.outcomes[place] for place in range(len(self.wanted))]

    def _fetch(self, places: Sequence[int]) -> Flow[dict[int, Fetched]]:
        found = yield from ask(Fetch(tuple(self.wanted[place] for place in places)))
        return dict(zip(places, found, strict=True))

    def _serve(
        self, places: Iterable[int], found: dict[int, Fetched]
    ) -> Flow[dict[int, Stored[T]]]:
        """Take what is good, and return what could still be served past its time."""
        usable: dict[int, Stored[T]] = {}
        foreign = 0
        for place in places:
            raw, stamps = found[place]
            stored = self.codec.parse(raw) if raw else None
            if stored is None:
                foreign += bool(raw)
            elif stored.stamps == stamps and raw != self.replaced.get(place):
                usable[place] = stored
        if foreign:
            yield from ask(Note("foreign", foreign))
        if usable:
            now_ms, uniform = yield from ask(Look())
            for place, stored in [*usable.items()]:
                if not is_due(
                    stored.soft_expiry_ms,
                    stored.took_ms,
                    now_ms=now_ms,
                    early_refresh=self.policy.early_refresh,
                    uniform=uniform,
                ):
                    self.outcomes[place] = Outcome(stored.value, "hit")
        return usable

    def _answered(
        self, answers: dict[int, Answer], usable: dict[int, Stored[T]], found: dict[int, Fetched]
    ) -> Flow[dict[int, Fetched]]:
        """Load what is granted, and return what is there by then of the others."""
        granted = {
            place: answer for place, answer in answers.items() if isinstance(answer, Granted)
        }
        again = {
            place: Fetched(answer.raw, found[place].stamps)
            for place, answer in answers.items()
            if isinstance(answer, Found)
        }
        left_ms: dict[int, float] = {}
        for place, answer in answers.items():
            if isinstance(answer, Taken):
                if place in usable:
                    self.outcomes[place] = Outcome(usable[place].value, "stale")
                else:
                    left_ms[place] = answer.left_ms
        if granted:
            yield from self._load_and_fill(granted)
        elif left_ms and not again:
            if self.waited_ms >= self.policy.wait_seconds * 1000:
                return {}
            yield from self._wait(max(left_ms.values()), len(left_ms))
        # What was stored meanwhile may have stamps that are newer than those that were read.
        anew = [*left_ms, *(place for place in again if self.wanted[place].tags)]
        return again | ((yield from self._fetch(anew)) if anew else {})

    def _wait(self, left_ms: float, entries: int) -> Flow[None]:
        self.pause_ms = max(1.0, min(left_ms, self.pause_ms))
        yield from ask(Note("waits", entries))
        yield from ask(Pause(self.pause_ms / 1000))
        self.waited_ms += self.pause_ms
        self.pause_ms = min(self.pause_ms * 2, _PAUSE_MS_MAX)

    def _load_and_fill(self, granted: Mapping[int, Granted]) -> Flow[None]:
        entries = tuple(self.wanted[place].entry for place in granted)
        try:
            known = yield from self._stamped(granted)
            stamps = tuple(self._stamps_of(place, known) for place in granted)
            writers = _union((*granted.values(), *filter(None, known.values())))
            loaded = yield from ask(Load(tuple(granted), stamps, leased=True, writers=writers))
        except GeneratorExit:
            raise
        except BaseException:
            # Whoever waits for the lease need not wait it out.
            with suppress(CacheSilence):
                yield from ask(Release(entries, self.token))
            raise
        for place, one in zip(granted, loaded, strict=True):
            self.outcomes[place] = Outcome(one.value, "loaded")
        with suppress(CacheSilence):  # stored or not, they are right for this caller
            yield from self._fill(granted, loaded)

    def _stamped(self, granted: Iterable[int]) -> Flow[dict[str, Stamped | None]]:
        tags = tuple(dict.fromkeys(tag for place in granted for tag in self.wanted[place].tags))
        if not tags:
            return {}
        stamps = yield from ask(Stamp(tags, self.with_writers))
        return dict(zip(tags, stamps, strict=True))

    def _stamps_of(
        self, place: int, known: Mapping[str, Stamped | None]
    ) -> tuple[bytes, ...] | None:
        """Return the stamps to store with an entry; None if one of its tags is fenced."""
        found = [known[tag] for tag in self.wanted[place].tags]
        return None if None in found else tuple(each.stamp for each in found if each is not None)

    def _fill(self, granted: Iterable[int], loaded: Sequence[Loaded[T]]) -> Flow[None]:
        pairs = [*zip(granted, loaded, strict=True)]
        kept = [(place, one) for place, one in pairs if one.raw is not None]
        left = tuple(self.wanted[place].entry for place, one in pairs if one.raw is None)
        if left:
            yield from ask(Release(left, self.token))
        if not kept:
            return
        fillings = tuple(
            Filling(self.wanted[place].entry, one.raw or b"", one.ttl_ms) for place, one in kept
        )
        filled = yield from ask(Fill(fillings, self.token))
        for (place, one), is_filled in zip(kept, filled, strict=True):
            if is_filled:
                self.outcomes[place] = Outcome(one.value, "filled")
        if refused := len(filled) - sum(filled):
            yield from ask(Note("refused", refused))


def _union(of: Iterable[Granted | Stamped]) -> Writers:
    known: set[Xid] = set()
    for each in of:
        if each.writers is None:
            return None
        known |= each.writers
    return frozenset(known)
