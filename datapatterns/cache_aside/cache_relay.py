"""The relay of a Redis by itself, for whoever runs it and looks after it."""

from redis import Redis
from redis.cluster import RedisCluster
from sqlalchemy import Engine

from datapatterns.breaker import Breaker
from datapatterns.cache_aside.cluster_links import links_to
from datapatterns.cache_aside.keys import checked_target
from datapatterns.cache_aside.policy import DEFAULT_POLICY, CachePolicy
from datapatterns.cache_aside.relaying import Relay, RelayReport
from datapatterns.cache_aside.standing import Standing
from datapatterns.cache_aside.status import (
    RelayStatus,
    count_values,
    read_followed_tables,
    read_lag,
    read_prefix,
    read_round_age,
)
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.errors import ServerUnavailableError
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema
from datapatterns.telemetry import SILENT, Observer


class CacheRelay:
    """Tells one Redis of every invalidation that has committed, for all caches that use it.

    Args:
        redis: A URL, or a client whose settings are used.
        engine: The primary of the database.
        policy: How long each round vouches for the server, and how long Redis may take.
        schema: Where the library's tables live.
        target: The name of this Redis, as the caches say.
        observer: Where counts go.

    Raises:
        SettingsError: A name or a URL cannot be used.
    """

    def __init__(
        self,
        redis: str | Redis | RedisCluster,
        engine: Engine,
        *,
        policy: CachePolicy = DEFAULT_POLICY,
        schema: str = DEFAULT_SCHEMA,
        target: str = "datapatterns",
        observer: Observer = SILENT,
    ) -> None:
        self.engine = engine
        self.schema = checked_schema(schema)
        self.target = checked_target(target)
        self._observer = observer
        self._links = links_to(
            redis,
            timeout_seconds=policy.redis_timeout_seconds,
            new_breaker=lambda: Breaker(SYSTEM_CLOCK.monotonic),
            on_silence=lambda: None,
        )
        self._relay = Relay(engine, self._links, policy, self.schema, self.target, observer)

    def run(self) -> RelayReport:
        """Send what has committed since the last round, whichever process ran that.

        Raises:
            ServerUnavailableError: Redis did not answer; nothing is lost.
            SettingsError: The engine leads to a standby.
        """
        try:
            report, _ = self._relay.run()
        except CacheSilence as silence:
            raise ServerUnavailableError("Redis", str(silence)) from silence
        return report

    def status(self) -> RelayStatus:
        """Return how the relay stands; a silent Redis shows in it."""
        named = {"schema": self.schema, "target": self.target}
        with self.engine.connect() as conn:
            prefix = read_prefix(conn, **named)
            age, lag = read_round_age(conn, **named), read_lag(conn, **named)
            followed = read_followed_tables(conn, **named)
        status = RelayStatus(self.target, age is not None, age, lag.rows, lag.seconds, followed)
        if prefix is None:
            return status
        try:
            standing = Standing(prefix, self._links.current_identity())
            is_vouched_for = self._relay.vouches_for(standing)
            values = count_values(self._links, prefix)
        except CacheSilence:
            return status
        return RelayStatus(
            self.target, True, age, lag.rows, lag.seconds, followed, is_vouched_for, values
        )

    def tell_lag(self) -> None:
        """Tell the observer what waits to be sent; it costs two queries."""
        with self.engine.connect() as conn:
            lag = read_lag(conn, schema=self.schema, target=self.target)
        self._observer.count("datapatterns.cache.relay.waiting", lag.rows, target=self.target)
        self._observer.duration("datapatterns.cache.relay.lag", lag.seconds, target=self.target)

    def close(self) -> None:
        """Close idle connections to Redis; the relay can still be used."""
        self._links.close()
