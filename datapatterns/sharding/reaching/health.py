"""How shards are, and what about their servers would do harm one day."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, Float, QueuePool, func, inspect, select, text

from datapatterns.breaker import Breaker
from datapatterns.errors import ConfigurationError, ShardUnavailableError
from datapatterns.sharding.atomic.recovering import PREPARED
from datapatterns.sharding.fan_out import FanOut
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.reaching.circuits import connecting_within
from datapatterns.sharding.reaching.threads import InThreadsOfShards
from datapatterns.sharding.reaching.time_limits import time_limit
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.transactions import looking

T = TypeVar("T")

OLD_SECONDS: Final = 60.0
"""A prepared transaction that is older has been forgotten; it holds back VACUUM on its server."""

_ASK_SECONDS: Final = 2.0
_COLLATION_VERSIONS: Final = 150000


@dataclass(frozen=True, slots=True)
class ShardHealth:
    """How one shard is, as this process sees it.

    Attributes:
        shard: Which one.
        answers: Whether it answered just now, within two seconds.
        left_alone: Whether so many connections failed that it is asked once a second only.
        problem: Why it does not answer.
        in_use: How many of this process's connections are in use.
        in_use_max: How many may be; None for any number.
        prepared: How many transactions over several shards are prepared there.
        oldest_prepared_seconds: For how long the oldest of them has been.
    """

    shard: str
    answers: bool
    left_alone: bool
    problem: str | None
    in_use: int
    in_use_max: int | None
    prepared: int
    oldest_prepared_seconds: float


@dataclass(frozen=True, slots=True)
class ShardFinding:
    """Something about a shard's server that should be mended.

    Attributes:
        shard: Where.
        problem: What is wrong.
        advice: What mends it; SQL where SQL does.
    """

    shard: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"shard {self.shard!r}: {self.problem}; {self.advice}"


@dataclass(frozen=True, slots=True)
class _Server:
    version: int
    database: str
    prepared_max: int
    prepared: int
    oldest_seconds: float
    encoding: str
    time_zone: str
    collation: str
    collation_stored: str | None
    collation_actual: str | None


def health_of(
    engines: Mapping[str, Engine], breakers: Mapping[str, Breaker], fan_out: FanOut
) -> list[ShardHealth]:
    """Ask all shards at once how they are; one that does not answer takes two seconds."""
    asked = _ask(engines, fan_out, _prepared)
    found = []
    for shard, engine in engines.items():
        answer = asked[shard]
        prepared, oldest = (0, 0.0) if isinstance(answer, Exception) else answer
        in_use, in_use_max = _use_of(engine)
        found.append(
            ShardHealth(
                shard,
                answers=not isinstance(answer, Exception),
                left_alone=breakers[shard].is_open,
                problem=str(answer) if isinstance(answer, Exception) else None,
                in_use=in_use,
                in_use_max=in_use_max,
                prepared=prepared,
                oldest_prepared_seconds=oldest,
            )
        )
    return found


def findings_of(engines: Mapping[str, Engine], fan_out: FanOut) -> list[ShardFinding]:
    """Ask all shards at once, and compare them; return what should be mended, by shard."""
    asked = _ask(engines, fan_out, _server)
    silent = {shard: each for shard, each in asked.items() if isinstance(each, Exception)}
    servers = {shard: each for shard, each in asked.items() if not isinstance(each, Exception)}
    found = [
        ShardFinding(shard, "it could not be looked at", str(error))
        for shard, error in silent.items()
    ]
    for shard, server in servers.items():
        found += _alone(shard, server, connections=_use_of(engines[shard])[1] or 1)
    found += _differing(servers)
    return sorted(found, key=lambda finding: finding.shard)


def check_shards(
    engines: Mapping[str, Engine], *, schema: str = DEFAULT_SCHEMA
) -> list[ShardFinding]:
    """Do as `ShardCluster.check`, for those of ``engines`` that are shards of a cluster."""
    fan_out = InThreadsOfShards(engines)
    try:
        asked = _ask(engines, fan_out, partial(_is_shard, schema=schema))
        shards = [name for name, answer in asked.items() if answer is not False]
        return findings_of({name: engines[name] for name in shards}, fan_out)
    finally:
        fan_out.shutdown()


def _is_shard(conn: Connection, *, schema: str) -> bool:
    this_shard = sharding_tables(schema).this_shard
    if not inspect(conn).has_table(this_shard.name, schema=schema):
        return False
    return conn.scalar(select(this_shard.c.shard_id)) is not None


def _alone(shard: str, server: _Server, *, connections: int) -> Iterable[ShardFinding]:
    if server.prepared_max < connections:
        enough = max(64, connections)
        yield ShardFinding(
            shard,
            f"max_prepared_transactions is {server.prepared_max}, and this process alone may have"
            f" {connections} transactions over several shards at once",
            f"ALTER SYSTEM SET max_prepared_transactions = {enough}; and restart the server",
        )
    if server.oldest_seconds > OLD_SECONDS:
        yield ShardFinding(
            shard,
            f"a transaction has been prepared for {server.oldest_seconds:.0f} s, holds locks and"
            " holds back VACUUM",
            "run `datapatterns shards recover`, and let a worker do so",
        )
    if server.collation_stored != server.collation_actual:
        yield ShardFinding(
            shard,
            f"its indexes on text were built by version {server.collation_stored} of its collation,"
            f" and {server.collation_actual} is in use",
            f'REINDEX DATABASE "{server.database}"; ALTER DATABASE "{server.database}" REFRESH'
            " COLLATION VERSION",
        )


def _differing(servers: Mapping[str, _Server]) -> Iterable[ShardFinding]:
    yield from _odd(
        servers,
        lambda server: (server.collation, server.collation_actual),
        "its collation is {}, and that of others another one, so they sort text differently",
        "use one image of the operating system, or the collation provider icu or builtin",
    )
    yield from _odd(
        servers,
        lambda server: server.encoding,
        "its encoding is {}, and that of others another one",
        "dump and restore it into a database with ENCODING 'UTF8'",
    )
    yield from _odd(
        servers,
        lambda server: server.time_zone,
        "its time zone is {}, and that of others another one: this library sets UTC, other programs"
        " may not",
        "ALTER SYSTEM SET TimeZone = 'UTC'; SELECT pg_reload_conf()",
    )
    yield from _odd(
        servers,
        lambda server: server.version // 10_000,
        "its PostgreSQL is version {}, and that of others another one",
        "upgrade the older ones",
    )


def _odd(
    servers: Mapping[str, _Server], value: Callable[[_Server], object], problem: str, advice: str
) -> Iterable[ShardFinding]:
    values = {shard: value(server) for shard, server in servers.items()}
    if len(set(values.values())) > 1:
        usual = Counter(values.values()).most_common(1)[0][0]
        for shard, found in values.items():
            if found != usual:
                yield ShardFinding(shard, problem.format(found), advice)


def _ask(
    engines: Mapping[str, Engine], fan_out: FanOut, ask: Callable[[Connection], T]
) -> dict[str, T | Exception]:
    answers = fan_out.answers(
        {shard: partial(asked_now, engine, shard, ask) for shard, engine in engines.items()}
    )
    return {shard: answer.result() for shard, answer in answers.items()}


def asked_now(engine: Engine, shard: str, ask: Callable[[Connection], T]) -> T | Exception:
    """Return what a server says within two seconds, or why it does not."""
    try:
        with (
            connecting_within(_ASK_SECONDS),
            shard_errors(shard),
            engine.connect() as conn,
            looking(conn),
            time_limit(conn, shard, _ASK_SECONDS),
        ):
            return ask(conn)
    except (ConfigurationError, ShardUnavailableError) as error:
        return error


def _prepared(conn: Connection) -> tuple[int, float]:
    age = func.extract("epoch", func.clock_timestamp() - func.min(PREPARED.c.prepared)).cast(Float)
    count, oldest = conn.execute(
        select(func.count(), age).where(
            PREPARED.c.database == func.current_database(),
            PREPARED.c.gid.startswith("datapatterns/"),
        )
    ).one()
    return count, oldest or 0.0


def _server(conn: Connection) -> _Server:
    prepared, oldest = _prepared(conn)
    names = "server_version_num", "max_prepared_transactions", "server_encoding"
    version, prepared_max, encoding = conn.execute(
        select(*(func.current_setting(name) for name in names))
    ).one()
    has_versions = int(version) >= _COLLATION_VERSIONS
    asked = conn.execute(_COLLATION) if has_versions else conn.execute(_OLDER_COLLATION)
    database, collation, stored, actual = asked.one()
    zone: Any = conn.scalar(text("SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'"))
    return _Server(
        int(version),
        database,
        int(prepared_max),
        prepared,
        oldest,
        encoding,
        zone,
        collation,
        stored,
        actual,
    )


def _use_of(engine: Engine) -> tuple[int, int | None]:
    pool = engine.pool
    if not isinstance(pool, QueuePool):
        return 0, None
    overflow_max = pool._max_overflow  # noqa: SLF001 -- nothing else tells it
    limit = None if overflow_max < 0 or pool.size() == 0 else pool.size() + overflow_max
    return pool.checkedout(), limit


_COLLATION: Final = text(
    "SELECT datname, datcollate, datcollversion, pg_database_collation_actual_version(oid)"
    " FROM pg_database WHERE datname = current_database()"
)
_OLDER_COLLATION: Final = text(
    "SELECT datname, datcollate, CAST(NULL AS text), CAST(NULL AS text)"
    " FROM pg_database WHERE datname = current_database()"
)
