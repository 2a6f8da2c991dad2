"""Reads on replicas: only on one that has replayed what the reader must see."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, TypeAlias

from psycopg import Error as DriverError
from sqlalchemy import URL, Connection, Engine, Text, cast, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import DataPatternsError
from datapatterns.sharding.citus.citus_shard import CitusShard
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.circuits import connecting_within
from datapatterns.sharding.reaching.tokens import NEVER, ShardToken, number_of
from datapatterns.transactions import looking

logger = logging.getLogger(__name__)

FIRST_EPOCH: Final = 1
_CONNECT_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class Shard:
    """The servers of one shard.

    Attributes:
        primary: Where it is written to.
        replicas: Where it may be read, too: physical standbys of the primary.
    """

    primary: str | URL
    replicas: Sequence[str | URL] = ()


Servers: TypeAlias = str | URL | Shard | CitusShard


def primary_of(servers: Servers) -> str | URL:
    """Return where a shard is written to."""
    if isinstance(servers, CitusShard):
        return servers.coordinator
    return servers.primary if isinstance(servers, Shard) else servers


def replicas_of(servers: Servers) -> Sequence[str | URL]:
    """Return where a shard may be read, too."""
    return servers.replicas if isinstance(servers, Shard) else ()


class Replicas:
    """Chooses replicas; each shard's take turns.

    A bucket that has just arrived looks empty on a replica that is behind, and one that has left
    and come back looks as it was before. So after each change of the map a replica has to reach
    where its primary is then. Where the map has never changed, nothing has arrived.

    Args:
        primaries: The engine of each shard.
        engines: Those of its replicas.
        maps: Returns the maps of all groups.
        clock: How time passes.
    """

    def __init__(
        self,
        primaries: Mapping[str, Engine],
        engines: Mapping[str, Sequence[Engine]],
        maps: Callable[[], Sequence[ShardMap]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._primaries = primaries
        self._engines = {shard: tuple(found) for shard, found in engines.items() if found}
        self._maps = maps
        self._clock = clock
        self._floors: dict[str, tuple[tuple[int, ...], str]] = {}
        self._turns = count()

    def has(self, shard: str) -> bool:
        """Return whether a shard has replicas."""
        return shard in self._engines

    def connect(self, shard: str, token: ShardToken, *, seconds: float) -> Connection | None:
        """Return a connection to a replica that shows what ``token`` stands for, or None.

        Args:
            shard: Of which shard.
            token: What it has to show.
            seconds: How long to wait for one that is behind.
        """
        engines = self._engines.get(shard, ())
        place = self._needed(shard, token) if engines else None
        if place is None or place == NEVER:
            return None
        first, deadline = next(self._turns), self._clock.monotonic() + seconds
        for turn in range(len(engines)):
            engine = engines[(first + turn) % len(engines)]
            if (conn := self._reached(engine, place, deadline)) is not None:
                return conn
        return None

    def close(self) -> None:
        """Close all connections that nobody uses."""
        for engines in self._engines.values():
            for engine in engines:
                engine.dispose()

    def _needed(self, shard: str, token: ShardToken) -> str | None:
        """Return what a replica has to have replayed; None if nobody can tell."""
        maps = self._maps()
        if any(each.epoch < token.epochs.get(each.group_id, 0) for each in maps):
            return None  # an old map: the rows may be on another shard
        place = token.places.get(shard, "0/0")
        epochs = tuple(each.epoch for each in maps)
        if all(epoch <= FIRST_EPOCH for epoch in epochs):
            return place
        known = self._floors.get(shard)
        if known is None or known[0] != epochs:
            try:
                known = epochs, place_of(self._primaries[shard])
            except (DBAPIError, DataPatternsError, PoolTimeoutError):
                return None
            self._floors[shard] = known
        return max(place, known[1], key=number_of)

    def _reached(self, engine: Engine, place: str, deadline: float) -> Connection | None:
        try:
            with connecting_within(_CONNECT_SECONDS):
                conn = engine.connect()
        except (DBAPIError, DataPatternsError, PoolTimeoutError) as error:
            logger.warning("a replica cannot be read: %s", error)
            return None
        try:
            while not (reached := _has_replayed(conn, place)):
                if reached is None or self._clock.monotonic() >= deadline:
                    conn.close()
                    return None
        except (DBAPIError, DriverError, DataPatternsError) as error:
            logger.warning("a replica cannot be read: %s", error)
            conn.close()
            return None
        except BaseException:
            conn.close()
            raise
        return conn


NO_REPLICAS: Final = Replicas({}, {}, list)


def place_of(engine: Engine) -> str:
    """Return where the log of a primary is now."""
    with connecting_within(_CONNECT_SECONDS), engine.connect() as conn, looking(conn):
        return str(conn.scalar(select(cast(func.pg_current_wal_insert_lsn(), Text))))


def _has_replayed(conn: Connection, place: str) -> bool | None:
    """Return whether a replica is so far, waiting for a moment if not; None if it is none.

    In a transaction of its own: a snapshot that is kept could be older than what is found here.
    """
    with looking(conn):
        is_replica, replayed = conn.execute(
            select(func.pg_is_in_recovery(), cast(func.pg_last_wal_replay_lsn(), Text))
        ).one()
        if not is_replica or replayed is None:
            logger.warning("a server that is declared as a replica is none")
            return None
        if number_of(replayed) >= number_of(place):
            return True
        # There, as this may be the thread of an event loop.
        conn.execute(select(func.pg_sleep(_LOOK_SECONDS))).close()
        return False
