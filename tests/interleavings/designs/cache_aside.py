"""Values of PostgreSQL kept in Redis; after the dust has settled, absent or equal (C1, C3)."""

import secrets
from collections.abc import Callable
from functools import partial
from typing import cast

from sqlalchemy import Connection, text

from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import CRASHES, Design, Stage, Tasks
from tests.interleavings.designs.relay import relay_once

TABLES = "CREATE TABLE item (key text PRIMARY KEY, value int NOT NULL, version int NOT NULL)"
SET_UP = "DELETE FROM item; INSERT INTO item VALUES ('x', 0, 0); DELETE FROM outbox"

SELECT = text("SELECT value, version FROM item WHERE key = :key")
UPDATE = text(
    "UPDATE item SET value = :value, version = version + 1 WHERE key = :key RETURNING version"
)


class SetAfterMiss:
    """Wrong: whoever read before the write may store after the write's DEL."""

    def __init__(self, stage: Stage) -> None:
        self.engine, self.redis = stage.engine, stage.redis

    def get(self, key: str) -> int:
        with self.engine.connect() as conn:
            return self.get_in(conn, key)

    def get_in(self, conn: Connection, key: str) -> int:
        """Look up, load and fill; the transaction ends with the load."""
        if (cached := self.redis.get(key)) is not None:
            return int(cast("str", cached))
        value, version = conn.execute(SELECT, {"key": key}).one()
        conn.commit()
        self.fill(key, value, version)
        return int(value)

    def put(self, key: str, value: int) -> None:
        with self.engine.begin() as conn:
            version = conn.scalar(UPDATE, {"key": key, "value": value})
        self.invalidate(key, version)

    def fill(self, key: str, value: int, _version: int) -> None:
        self.redis.set(key, value)

    def invalidate(self, key: str, _version: int) -> None:
        self.redis.delete(key)


class Tombstone(SetAfterMiss):
    """A fill older than the last invalidation is refused; as long as Redis remembers that one."""

    _SCRIPT = """
    local oldest = redis.call('GET', KEYS[2])
    if oldest and tonumber(oldest) > tonumber(ARGV[2]) then return 0 end
    if ARGV[1] == '' then
      redis.call('SET', KEYS[2], ARGV[2], 'EX', 60)
      redis.call('DEL', KEYS[1])
    else
      redis.call('SET', KEYS[1], ARGV[1])
    end
    return 1
    """

    def fill(self, key: str, value: int, version: int) -> None:
        self.redis.eval(self._SCRIPT, 2, key, f"{key}:oldest", str(value), str(version))

    def invalidate(self, key: str, version: int) -> None:
        self.redis.eval(self._SCRIPT, 2, key, f"{key}:oldest", "", str(version))


class Lease(SetAfterMiss):
    """A miss takes a token, an invalidation removes it, a fill needs it."""

    _MISS = """
    local value = redis.call('GET', KEYS[1])
    if value then return value end
    redis.call('SET', KEYS[2], ARGV[1], 'PX', 60000)
    return false
    """
    _FILL = """
    if redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
    redis.call('SET', KEYS[1], ARGV[1], 'EX', 60)
    redis.call('DEL', KEYS[2])
    return 1
    """

    def get_in(self, conn: Connection, key: str) -> int:
        token = secrets.token_hex(4)
        cached = self.redis.eval(self._MISS, 2, key, f"{key}:lease", token)
        if cached is not None:
            return int(cast("str", cached))
        value, _ = conn.execute(SELECT, {"key": key}).one()
        conn.commit()
        self.redis.eval(self._FILL, 2, key, f"{key}:lease", str(value), token)
        return int(value)

    def invalidate(self, key: str, _version: int) -> None:
        self.redis.delete(key, f"{key}:lease")


class LeaseAndOutbox(Lease):
    """Invalidations are written with what they invalidate; and a relay delivers them."""

    def get_in(self, conn: Connection, key: str) -> int:
        # The caller's snapshot may be older than the lease would be: never fill from it.
        if (cached := self.redis.get(key)) is not None:
            return int(cast("str", cached))
        return int(conn.execute(SELECT, {"key": key}).one().value)

    def get(self, key: str) -> int:
        with self.engine.connect() as conn:
            return Lease.get_in(self, conn, key)

    def put(self, key: str, value: int) -> None:
        with self.engine.begin() as conn:
            conn.execute(UPDATE, {"key": key, "value": value})
            conn.execute(text("INSERT INTO outbox (key) VALUES (:key)"), {"key": key})
        relay_once(self.engine, self.redis)


class LeaseAndWriters(Lease):
    """Invalidations leave their transaction's id; a fill must have seen what those wrote."""

    _MISS = """
    local value = redis.call('GET', KEYS[1])
    if value then return {1, value} end
    redis.call('SET', KEYS[2], ARGV[1], 'PX', 60000)
    return {0, redis.call('SMEMBERS', KEYS[3])}
    """
    _INVALIDATE = """
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('SADD', KEYS[3], ARGV[1])
    return redis.call('EXPIRE', KEYS[3], 60)
    """
    _SEEN = text(
        """
        SELECT value, (
          SELECT coalesce(bool_and(pg_visible_in_snapshot(xid::xid8, pg_current_snapshot())), true)
          FROM unnest(CAST(:xids AS text[])) AS xid
        ) AS has_seen_all
        FROM item WHERE key = :key
        """
    )

    def get_in(self, conn: Connection, key: str) -> int:
        token, keys = secrets.token_hex(4), (key, f"{key}:lease", f"{key}:writers")
        answer = cast("tuple[int, object]", self.redis.eval(self._MISS, 3, *keys, token))
        if answer[0]:
            return int(cast("str", answer[1]))
        value, has_seen_all = conn.execute(self._SEEN, {"key": key, "xids": answer[1]}).one()
        conn.commit()
        if has_seen_all:
            self.redis.eval(self._FILL, 2, key, f"{key}:lease", str(value), token)
        return int(value)

    def put(self, key: str, value: int) -> None:
        with self.engine.begin() as conn:
            conn.execute(UPDATE, {"key": key, "value": value})
            xid = conn.scalar(text("SELECT pg_current_xact_id()::text"))
        keys = (key, f"{key}:lease", f"{key}:writers")
        self.redis.eval(self._INVALIDATE, 3, *keys, str(xid))


# -- who meets -----------------------------------------------------------------------------------


def _meeting(
    kind: type[SetAfterMiss], *, readers: int = 1, evicted: str = ""
) -> Callable[[Stage], Tasks]:
    def tasks(stage: Stage) -> Tasks:
        cache = kind(stage)
        found: dict[str, Callable[[], object]] = {"writer": lambda: cache.put("x", 1)}
        found |= {f"reader{n}": lambda: cache.get("x") for n in range(readers)}
        if evicted:
            found["eviction"] = lambda: stage.redis.delete(evicted)
        return found

    return tasks


def _meeting_an_old_snapshot(
    kind: type[SetAfterMiss], *, evicted: str = ""
) -> Callable[[Stage], Tasks]:
    def tasks(stage: Stage) -> Tasks:
        cache = kind(stage)

        def read() -> int:
            with stage.engine.connect() as conn:
                conn.execution_options(isolation_level="REPEATABLE READ")
                conn.execute(text("SELECT 1 FROM item LIMIT 1"))
                return cache.get_in(conn, "x")

        found: dict[str, Callable[[], object]] = {
            "writer": lambda: cache.put("x", 1),
            "reader": read,
        }
        if evicted:
            found["eviction"] = lambda: stage.redis.delete(evicted)
        return found

    return tasks


def _is_absent_or_equal(stage: Stage, _outcome: Outcome) -> None:
    cached = cast("str | None", stage.redis.get("x"))
    (value,) = stage.one("SELECT value FROM item WHERE key = 'x'")
    assert cached is None or int(cached) == value, f"cached is {cached}, the row says {value}"


def _is_absent_or_equal_once_relayed(stage: Stage, outcome: Outcome) -> None:
    relay_once(stage.engine, stage.redis)
    _is_absent_or_equal(stage, outcome)


_design = partial(Design, promise="C1 C3", set_up=SET_UP, check=_is_absent_or_equal)

DESIGNS = [
    _design("SET after a miss, DEL after the commit", tasks=_meeting(SetAfterMiss), wrong=True),
    _design("version tombstone", tasks=_meeting(Tombstone)),
    _design(
        "version tombstone, 2 readers", tasks=_meeting(Tombstone, readers=2), everyday_preemptions=1
    ),
    _design(
        "version tombstone that is evicted",
        tasks=_meeting(Tombstone, evicted="x:oldest"),
        wrong=True,
        examples=1_000,
    ),
    _design("lease", tasks=_meeting(Lease)),
    _design("lease that is evicted", tasks=_meeting(Lease, evicted="x:lease")),
    _design("lease, value that is evicted", tasks=_meeting(Lease, evicted="x")),
    _design(
        "lease, filled from an old snapshot", tasks=_meeting_an_old_snapshot(Lease), wrong=True
    ),
    _design(
        "lease, crash",
        tasks=_meeting(Lease),
        wrong=True,
        search=CRASHES,
        eludes_chance=True,
    ),
    _design(
        "lease and outbox, crash, then relayed",
        tasks=_meeting(LeaseAndOutbox),
        search=CRASHES,
        check=_is_absent_or_equal_once_relayed,
        everyday_preemptions=1,
    ),
    _design(
        "lease and outbox, no fill from a caller's snapshot",
        tasks=_meeting_an_old_snapshot(LeaseAndOutbox),
        check=_is_absent_or_equal_once_relayed,
    ),
    _design(
        "lease and writers' ids, old snapshot",
        tasks=_meeting_an_old_snapshot(LeaseAndWriters),
    ),
    _design(
        "lease and writers' ids that are evicted, old snapshot",
        tasks=_meeting_an_old_snapshot(LeaseAndWriters, evicted="x:writers"),
        wrong=True,
        examples=1_000,
    ),
]
