"""Values that this process keeps beside Redis, for as long as it is told of every change there.

Nothing is asked on a hit, so whatever could be wrong must have been taken away before: by what
Redis pushes, see `tracking`, by this process's own writes, and by the gate.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from sys import getsizeof
from threading import Lock
from time import monotonic, time
from typing import Any, Final
from weakref import WeakSet

from datapatterns.cache_aside.codec import Codec, Stored, fresh_until_ms
from datapatterns.cache_aside.keys import is_identical
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.redis_commands import stamps_beginning, values_beginning
from datapatterns.cache_aside.shared_values import bytes_of
from datapatterns.cache_aside.standing import Standing
from datapatterns.cache_aside.steps import Wanted

NOT_KEPT: Final = object()
_NEVER = float("-inf")
# What dictionaries, sets and the slot itself take, measured; see the test of the bound.
_SLOT_BYTES, _TAG_BYTES, _CALL_BYTES = 360, 260, 220
_CHANCES_MAX = 64


class Slot:
    """What is kept for one entry, or the mark that its value is being fetched.

    Attributes:
        until: When it needs a second thought, in seconds as `monotonic` counts; never good while
            it is a mark.
        decode: What makes the value of ``value``, which are bytes then; None if it is the value.
        kinds: The types of the arguments that ``call`` has.
        kind: The type if it is one.
        is_used: Whether somebody has been served since this was last thought of as superfluous.
    """

    __slots__ = (
        "bytes", "call", "codec", "decode", "entry", "is_used", "kind", "kinds", "tags", "until",
        "value",
    )  # fmt: skip

    def __init__(self, entry: str, tags: tuple[str, ...]) -> None:
        self.entry = entry
        self.tags = tags
        self.until = _NEVER
        self.codec: Codec[Any] | None = None
        self.decode: Callable[[bytes], Any] | None = None
        self.value: Any = None
        self.call: tuple[Any, ...] | None = None
        self.kinds: list[type] = []
        self.kind: type | None = None
        self.is_used = False
        self.bytes = _SLOT_BYTES + getsizeof(entry) + len(tags) * _TAG_BYTES

    def served(self) -> Any:  # noqa: ANN401 -- whatever is cached
        """Return the value; one that could be changed is the caller's own."""
        return self.value if self.decode is None else self.decode(self.value)


class LocalTier:
    """What one process keeps of one cache.

    It serves only while the gate is open and the server tells of changes, each for a time. Reading
    takes no lock: what is in the dictionaries may be served, and what may not is taken out.

    Args:
        name: What the cache holds.
        policy: How much memory to use.
        on_hits: Told now and then how many more hits there were.

    Attributes:
        until: When it stops serving, unless the gate and the server renew it.
        hits: How many values were served.
    """

    def __init__(self, name: str, policy: CachePolicy, on_hits: Callable[[int], object]) -> None:
        self.name = name
        self.until = _NEVER
        self._by_call: dict[tuple[Any, ...], Slot] = {}
        self._codec: Codec[Any] | None = None
        self.hits = 0
        self._bytes_max = policy.local_bytes
        self._on_hits = on_hits
        self._slots: OrderedDict[str, Slot] = OrderedDict()
        self._by_tag: dict[str, set[str]] = {}
        self._bytes = 0
        self._hits_told = 0
        self._lock = Lock()
        self._standing: Standing | None = None
        self._open_until = _NEVER
        self._tracked: tuple[str, frozenset[str]] | None = None
        self._tracked_until = _NEVER
        with _lock:
            _tiers.add(self)

    @property
    def standing(self) -> Standing | None:
        """Where the gate says that hits come from."""
        return self._standing

    @property
    def hears(self) -> bool:
        """Return whether the server tells of what changes where the gate says."""
        if self._standing is None or self._tracked is None:
            return False
        server, prefixes = self._tracked
        return server == self._standing.server and prefixes >= self.prefixes

    @property
    def bytes_used(self) -> int:
        """How much memory is used."""
        return self._bytes

    @property
    def count(self) -> int:
        """How many values are kept, and how many are being fetched."""
        return len(self._slots)

    def take_calls(self, codec: Codec[Any]) -> "LocalTier":
        """Let `served` and `name_call` be used for one function whose results ``codec`` reads."""
        self._codec = codec
        return self

    def served(self, call: tuple[Any, ...]) -> Any:  # noqa: ANN401 -- whatever is cached
        """Return what is kept for a call, or `NOT_KEPT`; the hottest path that there is.

        It takes less time than to name the entry would.
        """
        try:
            slot = self._by_call[call]
        except (KeyError, TypeError):  # or no key at all, as will be said
            return NOT_KEPT
        now = monotonic()
        if now >= slot.until or now >= self.until:
            return NOT_KEPT
        # Of the same types: 1, 1.0 and True are one key of a dictionary. To compare one is quick.
        if type(call[0]) is slot.kind if slot.kind else [*map(type, call)] == slot.kinds:
            slot.is_used = True
            self.hits += 1
            return slot.value if slot.decode is None else slot.decode(slot.value)
        return NOT_KEPT

    def find(self, codec: Codec[Any], wanted: Wanted) -> Slot | None:
        """Return what may be served, and count the hit."""
        slot = self._slots.get(wanted.entry)
        if slot is None or slot.codec is not codec or slot.tags != wanted.tags:
            return None
        now = monotonic()
        if now >= slot.until or now >= self.until:
            return None
        slot.is_used = True
        self.hits += 1
        return slot

    def expect(self, wanted: Wanted, standing: Standing) -> Slot | None:
        """Put a mark, *before* a value is fetched from ``standing``, and return it.

        What changes from now on takes the mark away, and `keep` keeps nothing without it: else
        news that overtook an older value would leave that here. None if nothing can be kept.
        """
        with self._lock:
            if self._standing != standing or monotonic() >= self.until:
                return None
            mark = self._slots.get(wanted.entry)
            # Those who come while others fetch share their mark: would each put another in its
            # place, a hot entry might never be kept.
            if mark is None or mark.codec is not None or mark.tags != wanted.tags:
                self._remove(wanted.entry)
                mark = Slot(*wanted)
                self._put(mark)
        return mark

    def keep(
        self,
        mark: Slot,
        codec: Codec[Any],
        stored: Stored[Any],
        raw: bytes,
        early_refresh: float,
    ) -> None:
        """Keep what was fetched after ``mark`` was put, if that still stands.

        How eagerly it is loaded anew is a matter of whoever has fetched it.
        """
        fresh_until = fresh_until_ms(stored.soft_expiry_ms, stored.took_ms, early_refresh)
        until = monotonic() + fresh_until / 1000 - time()
        if codec.can_be_shared(stored.value):
            value, decode, size = stored.value, None, bytes_of(stored.value)
        else:
            value, decode = codec.payload_in(raw), codec.decode
            size = getsizeof(value)
        with self._lock:
            if self._slots.get(mark.entry) is not mark or mark.codec is not None:
                return
            if mark.bytes + size > self._bytes_max:
                self._remove(mark.entry)
                return
            mark.value, mark.decode, mark.codec = value, decode, codec
            self._grow(mark, size)
            mark.until = until  # last: from here on others may be served

    def give_up(self, mark: Slot) -> None:
        """Take a mark away again: there was nothing to keep."""
        with self._lock:
            if self._slots.get(mark.entry) is mark and mark.codec is None:
                self._remove(mark.entry)

    def name_call(self, call: tuple[Any, ...], entry: str) -> None:
        """Let arguments lead to what is kept for ``entry``, if they equal no other ones."""
        if not all(map(is_identical, call)):
            return
        with self._lock:
            slot = self._slots.get(entry)
            # True and 1 are one key of a dictionary: who comes first has it.
            if slot is None or slot.codec is not self._codec or slot.call is not None:
                return
            if call in self._by_call:
                return
            slot.call, slot.kinds = call, [*map(type, call)]
            slot.kind = slot.kinds[0] if len(call) == 1 else None
            self._by_call[call] = slot
            self._grow(slot, _CALL_BYTES + sum(map(getsizeof, call)))

    def drop(self, entries: Iterable[str], tags: Iterable[str]) -> None:
        """Take away what is kept or expected for ``entries``, and what depends on ``tags``."""
        with self._lock:
            for entry in entries:
                self._remove(entry)
            for tag in tags:
                for entry in tuple(self._by_tag.get(tag, ())):
                    self._remove(entry)

    def clear(self) -> None:
        """Take everything away."""
        with self._lock:
            self._clear()

    def opened(self, standing: Standing, until: float) -> None:
        """Serve until then what comes from ``standing``, as far as the server tells of changes."""
        with self._lock:
            if self._standing != standing:
                # What was fetched while the gate was closed may be older than this process's own
                # writes.
                self._clear()
            self._standing, self._open_until = standing, until
            self._settle()

    def closed(self) -> None:
        """Serve nothing until the gate has opened."""
        with self._lock:
            self._standing = None
            self._settle()
            self._clear()

    @property
    def prefixes(self) -> frozenset[str]:
        """What the keys begin with whose changes concern this tier."""
        if (standing := self._standing) is None:
            return frozenset()
        prefix = standing.prefix
        return frozenset({values_beginning(prefix, self.name), stamps_beginning(prefix)})

    def tracked(self, server: str, prefixes: frozenset[str], until: float) -> None:
        """Take note that until then ``server`` tells of all changes of keys with such prefixes."""
        with self._lock:
            self._tracked, self._tracked_until = (server, prefixes), until
            self._settle()

    def lost(self) -> None:
        """Serve nothing until the server tells of changes again: some may have been missed."""
        with self._lock:
            self._tracked = None
            self._settle()
            self._clear()

    def tell_hits(self) -> None:
        """Tell of the hits since the last time."""
        with self._lock:
            more, self._hits_told = self.hits - self._hits_told, self.hits
        if more:
            self._on_hits(more)

    def leave_to_parent(self) -> None:
        """Begin anew in a forked process; another thread may have held the lock."""
        self._lock = Lock()
        self.hits = self._hits_told = 0
        self.closed()
        self.lost()

    def _settle(self) -> None:
        self.until = min(self._open_until, self._tracked_until) if self.hears else _NEVER

    def _put(self, slot: Slot) -> None:
        self._slots[slot.entry] = slot
        for tag in slot.tags:
            self._by_tag.setdefault(tag, set()).add(slot.entry)
        self._bytes += slot.bytes
        self._shrink(slot)

    def _grow(self, slot: Slot, size: int) -> None:
        slot.bytes += size
        self._bytes += size
        self._shrink(slot)

    def _shrink(self, newest: Slot) -> None:
        chances = _CHANCES_MAX
        while self._bytes > self._bytes_max:
            entry, oldest = next(iter(self._slots.items()))
            if chances and (oldest.is_used or oldest is newest):
                # Nearly the least recently used: readers leave a mark and move nothing.
                oldest.is_used = False
                self._slots.move_to_end(entry)
                chances -= 1
            else:
                self._remove(entry)

    def _remove(self, entry: str) -> None:
        slot = self._slots.pop(entry, None)
        if slot is None:
            return
        self._bytes -= slot.bytes
        if slot.call is not None:
            del self._by_call[slot.call]
        for tag in slot.tags:
            dependent = self._by_tag[tag]
            dependent.discard(entry)
            if not dependent:
                del self._by_tag[tag]

    def _clear(self) -> None:
        self._by_call.clear()
        self._slots.clear()
        self._by_tag.clear()
        self._bytes = 0


def nothing_served(_: tuple[Any, ...]) -> Any:  # noqa: ANN401 -- as `LocalTier.served`
    """Return `NOT_KEPT`: what a cache without a local tier keeps."""
    return NOT_KEPT


_tiers: WeakSet[LocalTier] = WeakSet()
_lock = Lock()


def forget_in_process(entries: Iterable[str], tags: Iterable[str]) -> None:
    """Take away what any cache of this process keeps: a writer does not wait to be told."""
    with _lock:
        tiers = [*_tiers]
    for tier in tiers:
        tier.drop(entries, tags)


def _leave_all_to_parent() -> None:
    global _lock  # noqa: PLW0603 -- another thread may have held it
    _lock = Lock()
    for tier in _tiers:
        tier.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)
