"""What a cache stands on, whichever colour it has: connections, gate, relay, outbox, counters."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import time
from typing import Any, TypeVar

from redis import Redis
from redis.cluster import RedisCluster
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from datapatterns.breaker import Breaker
from datapatterns.cache_aside.capturing import Tabled, follow, unfollow
from datapatterns.cache_aside.cluster_links import ClusterLinks, links_to
from datapatterns.cache_aside.codec import Codec, Stored, fresh_until_ms
from datapatterns.cache_aside.counting import CacheStats, Counters
from datapatterns.cache_aside.delivering import Delivery, Fences
from datapatterns.cache_aside.gate import Gate
from datapatterns.cache_aside.invalidating import keys_of, record_invalidation
from datapatterns.cache_aside.keys import Key, checked_name, checked_target, entry_of
from datapatterns.cache_aside.local_tier import LocalTier, Slot, forget_in_process
from datapatterns.cache_aside.older_snapshots import seen_by_all_of
from datapatterns.cache_aside.own_writes import Within, has_written, keeps_its_snapshot, note_write
from datapatterns.cache_aside.packing import Packer
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.query_plans import Queries
from datapatterns.cache_aside.reading import Reading
from datapatterns.cache_aside.relaying import Relay, RelayReport
from datapatterns.cache_aside.replica import Replica
from datapatterns.cache_aside.standing import Standing
from datapatterns.cache_aside.steps import (
    AnyStep,
    CacheSilence,
    Fetch,
    Fetched,
    Fill,
    Load,
    Loaded,
    Outcome,
    Wanted,
)
from datapatterns.cache_aside.tags import checked_tag
from datapatterns.cache_aside.tracking import TrackedTier
from datapatterns.cache_aside.writers import Home, checked_writer, refuse_autocommit
from datapatterns.cache_aside.writing import after_commit
from datapatterns.change_log.snapshots import Snapshot
from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.errors import ServerUnavailableError, SettingsError
from datapatterns.sql.metadata import checked_schema
from datapatterns.telemetry import Observer

T = TypeVar("T")
K = TypeVar("K", bound=Key)


class Backing:
    """The parts of one cache that block: for asyncio they run in threads.

    Args:
        redis: A URL, or a client whose settings are used.
        engine: The primary of the database.
        name: What the cache holds.
        policy: The times to live by.
        schema: Where the library's tables live.
        target: The name of this Redis.
        observer: Where counts and durations go.
        strict: Whether writers commit only behind a fence.
        detach: Called with entries and tags; loads under way of these, and of values that depend
            on one of the tags, must not be joined any more.

    Attributes:
        local: What this process keeps beside Redis, if it does.
        replica: What is known of the standby that it loads from, if it does.
    """

    def __init__(  # noqa: PLR0913 -- a composition root of its own
        self,
        redis: str | Redis | RedisCluster,
        engine: Engine,
        *,
        name: str,
        policy: CachePolicy,
        schema: str,
        target: str,
        observer: Observer,
        strict: bool,
        detach: Callable[[Sequence[str], Sequence[str]], object],
    ) -> None:
        self.name = checked_name(name)
        self.engine = engine
        self.policy = policy
        self.counters = Counters(name, observer)
        self.links = links_to(
            redis,
            timeout_seconds=policy.redis_timeout_seconds,
            new_breaker=lambda: Breaker(SYSTEM_CLOCK.monotonic, self.counters.opened),
            on_silence=self._note_silence,
        )
        self._schema = checked_schema(schema)
        self._target = checked_target(target)
        self._home = Home(engine)
        self._relay = Relay(engine, self.links, policy, self._schema, self._target, observer)
        self.local: LocalTier | None = None
        self._tracked: TrackedTier | None = None
        if policy.local_bytes:
            if isinstance(self.links, ClusterLinks):
                raise SettingsError(
                    "local_bytes", "nothing of a cluster is kept in the process; leave it 0"
                )
            self.local = LocalTier(name, policy, partial(self.counters.add, "local_hits"))
            self._tracked = TrackedTier(self.local, self.links)
        self.gate = Gate(self._relay, SYSTEM_CLOCK, self._tracked)
        self._delivery = Delivery(self.links, self.gate, self.counters, detach)
        self._fences: Fences | None = None
        if strict:
            self._fences = Fences(
                name,
                policy.fence_seconds,
                links=self.links,
                gate=self.gate,
                counters=self.counters,
                clock=SYSTEM_CLOCK,
            )
        self.replica = Replica(self._home, Breaker(SYSTEM_CLOCK.monotonic))
        self._codecs: dict[object, Codec[Any]] = {}

    def codec(self, value_type: object) -> Codec[Any]:
        """Return the one codec for values of this type."""
        codec = self._codecs.get(value_type)
        if codec is None:
            codec = self._codecs[value_type] = Codec(
                value_type, self.policy.serializer, bytes_max=self.policy.value_bytes_max
            )
        return codec

    def stats(self) -> CacheStats:
        """Return what this process has done with the cache."""
        if self.local is not None:
            self.local.tell_hits()
        return self.counters.stats()

    def close(self) -> None:
        """Close idle connections, and that on which Redis tells of changes; blocks for a moment."""
        if self._tracked is not None:
            self._tracked.close()
        self.links.close()

    def queries(self) -> Queries:
        """Return what knows on what the results of queries depend."""
        return Queries(
            self.name,
            self.engine,
            schema=self._schema,
            target=self._target,
            codec=self.codec,
        )

    def _note_silence(self) -> None:
        self.counters.add("silences")
        self.close_gate()

    def close_gate(self) -> None:
        """Serve no hits until a relay round has ended."""
        self.gate.close()

    def invalidate_in(
        self,
        writer: Connection | Session,
        keys: Iterable[Key],
        tags: Iterable[str] = (),
        *,
        is_late: bool = False,
    ) -> None:
        """Record ``keys`` and ``tags`` with the writer's transaction; deliver after its commit.

        Args:
            writer: Who writes.
            keys: What to forget.
            tags: On which other values depend.
            is_late: Whether it was written before; a fence is too late, then.
        """
        entries = [entry_of(self.name, key) for key in keys]
        tags = [checked_tag(tag) for tag in tags]
        if not entries and not tags:
            return
        writer = checked_writer(writer)
        conn = writer if isinstance(writer, Connection) else writer.connection()
        refuse_autocommit(conn)
        self._home.refuse_strangers(conn)
        invalidation = record_invalidation(
            conn, entries, tags, schema=self._schema, target=self._target
        )
        note_write(writer, conn, self._names(entries, tags))
        fence = None
        if self._fences is not None and not is_late:
            fence = self._fences.around(conn, invalidation)

        def committed(is_certain: bool) -> None:  # noqa: FBT001 -- as `AfterCommit`
            if fence is not None and is_certain:
                fence.check()
            self._delivery.deliver(invalidation, takes_down=is_certain)

        after_commit(writer, conn, committed)

    def view_of(self, within: Connection | Session, wanted: Wanted) -> Within | None:
        """Return the transaction if it has to see for itself, None if the cache is right for it.

        It is not, for a transaction that has written what is wanted, or that sees one moment only.

        Raises:
            SettingsError: ``within`` is an async one, or neither connection nor session.
        """
        within = checked_writer(within)
        if isinstance(within, Session) and within.autoflush:
            within.flush()  # as a query would: what is not flushed is not known
        conn = within if isinstance(within, Connection) else within.connection()
        if has_written(within, conn, self._names([wanted.entry], wanted.tags)):
            return Within(conn, has_written=True)
        return Within(conn, has_written=False) if keeps_its_snapshot(conn) else None

    def refuse_replica(self) -> None:
        """Refuse to load from a replica where nobody knows what Redis has lost.

        Raises:
            SettingsError: It is a cluster.
        """
        if not self.links.tells_losses:
            raise SettingsError("load_from", "beside a Redis Cluster values come from the primary")

    def seen_by(self, conn: Connection) -> Snapshot | None:
        """Return what a transaction of a caller's has seen, None if others must not have it."""
        if not (self.links.tells_losses and self._home.has(conn)):
            return None
        return seen_by_all_of(conn, self._home.outlook)

    def _names(self, entries: Iterable[str], tags: Iterable[str]) -> list[str]:
        """Return what tells entries and tags apart from those of other caches."""
        return [f"{self._target} {key}" for key in keys_of(entries, tags)]

    def capture(self, conn: Connection, models: Iterable[Tabled], *, by_key: bool) -> None:
        """Let the relay follow tables whose changes are captured; see `Cache.capture`."""
        cache = self.name if by_key else None
        for model in models:
            follow(conn, model, cache=cache, schema=self._schema, target=self._target)

    def release(self, conn: Connection, models: Iterable[Tabled]) -> None:
        """Let the relay follow tables no more."""
        for model in models:
            unfollow(conn, model, schema=self._schema, target=self._target)

    def relay(self) -> RelayReport:
        """Run one relay round.

        Raises:
            ServerUnavailableError: Redis did not answer; nothing is lost.
            SettingsError: The engine leads to a standby.
        """
        closings = self.gate.closings
        try:
            report, standing = self._relay.run()
        except CacheSilence as silence:
            raise ServerUnavailableError("Redis", str(silence)) from silence
        if standing is not None:
            self.gate.opened_by(standing, closings=closings)
        if report.entries:
            self.counters.add("replayed", report.entries)
        return report

    def count(self, outcome: Outcome[Any], *, has_joined: bool) -> None:
        """Count how a value was come by."""
        if outcome.source in {"hit", "stale"}:
            self.counters.hit()
            if outcome.value is None:
                self.counters.add("negative")
            if outcome.source == "stale":
                self.counters.add("stale")
        elif has_joined:
            self.counters.add("joined")
        else:
            self.counters.add("misses")
            if outcome.source == "filled":
                self.counters.add("filled")

    def packed(
        self,
        reading: Reading[T, Any],
        values: Sequence[T],
        step: Load,
        *,
        seconds: float,
        is_current: bool,
    ) -> list[Loaded[T]]:
        """Return loaded values with the bytes of those that may be stored.

        Args:
            reading: What makes bytes of them, and the times they live by.
            values: As they were loaded.
            step: What was asked for.
            seconds: How long it took for all of them.
            is_current: Whether they show whatever had been invalidated before the lease.
        """
        self.counters.loaded(len(values), seconds)
        packer = Packer(reading.policy, self.counters)
        return packer.packed(reading.codec, values, step, seconds=seconds, is_current=is_current)

    def served(self, codec: Codec[T], found: Fetched) -> Stored[T] | None:
        """Return what was found if it would be served, and is not past its time."""
        stored = codec.parse(found.raw) if found.raw else None
        if stored is None or stored.stamps != found.stamps:
            return None
        return stored if stored.soft_expiry_ms > time() * 1000 else None

    def fresh(
        self, codec: Codec[T], policy: CachePolicy, found: Fetched, mark: Slot | None = None
    ) -> Stored[T] | None:
        """Return what was found if no second thought is needed, and count the hit.

        Args:
            codec: What makes a value of it.
            policy: How eagerly this caller loads anew.
            found: What there was.
            mark: Put in the local tier before it was fetched; there it is kept.
        """
        stored = codec.parse(found.raw) if found.raw else None
        if stored is not None and not _is_fresh(stored, found, policy):
            stored = None
        if mark is not None:
            self._settle(mark, codec, policy, stored, found)
        if stored is not None:
            self.counters.hit()
            if stored.value is None:
                self.counters.add("negative")
        return stored

    def left_after(
        self,
        codec: Codec[Any],
        wanted: Callable[[K], Wanted],
        keys: Sequence[K],
        found: dict[K, Any],
    ) -> Sequence[K]:
        """Add to ``found`` what this process keeps, and return the other keys."""
        if self.local is None:
            return keys
        left = []
        for key in keys:
            slot = self.local.find(codec, wanted(key))
            if slot is None:
                left.append(key)
            else:
                found[key] = slot.served()
        return left

    def expected(
        self, step: AnyStep, reading: Reading[Any, Any], standing: Standing
    ) -> Sequence[Slot | None]:
        """Put marks in the local tier for what ``step`` is about to fetch, to be settled then."""
        if self.local is None or reading.anew or not isinstance(step, Fetch):
            return ()
        return [self.local.expect(wanted, standing) for wanted in step.wanted]

    def settle(
        self,
        step: AnyStep,
        reading: Reading[Any, Any],
        marks: Sequence[Slot | None],
        answer: Any,  # noqa: ANN401
    ) -> None:
        """Keep in this process what was fetched; take away what has been stored anew."""
        if isinstance(step, Fill):
            forget_in_process([filling.entry for filling in step.fillings], ())
        for mark, found in zip(marks, answer if marks else (), strict=True):
            if mark is not None:
                codec, policy = reading.codec, reading.policy
                stored = codec.parse(found.raw) if found.raw else None
                is_fresh = stored is not None and _is_fresh(stored, found, policy)
                self._settle(mark, codec, policy, stored if is_fresh else None, found)

    def _settle(
        self,
        mark: Slot,
        codec: Codec[Any],
        policy: CachePolicy,
        stored: Stored[Any] | None,
        found: Fetched,
    ) -> None:
        assert self.local is not None
        if stored is None or found.raw is None:
            self.local.give_up(mark)
        else:
            self.local.keep(mark, codec, stored, found.raw, policy.early_refresh)


def _is_fresh(stored: Stored[Any], found: Fetched, policy: CachePolicy) -> bool:
    if stored.stamps != found.stamps:
        return False
    until_ms = fresh_until_ms(stored.soft_expiry_ms, stored.took_ms, policy.early_refresh)
    return until_ms > time() * 1000
