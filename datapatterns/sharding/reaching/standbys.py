"""What about the replicas of shards would do harm one day, or already does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Connection, Engine, text

from datapatterns.sharding.fan_out import FanOut
from datapatterns.sharding.reaching.health import ShardFinding, asked_now

_COLLATION_VERSIONS: Final = 150000


@dataclass(frozen=True, slots=True)
class Standby:
    """How a server is that is declared as a replica.

    Attributes:
        is_one: Whether it replays the log of another.
        paused: Whether somebody has told it not to.
        collation_stored: The release of the library by which the indexes on text were built.
        collation_actual: The one by which this server compares.
    """

    is_one: bool
    paused: bool
    collation_stored: str | None
    collation_actual: str | None


def replica_findings(
    replicas: Mapping[str, Sequence[Engine]], fan_out: FanOut
) -> list[ShardFinding]:
    """Look at the replicas of all shards at once, those of a shard one after the other."""

    def look(shard: str, engines: Sequence[Engine]) -> list[Standby | Exception]:
        return [asked_now(engine, shard, _standby) for engine in engines]

    answers = fan_out.answers(
        {shard: partial(look, shard, engines) for shard, engines in replicas.items() if engines}
    )
    return [
        finding
        for shard, answer in answers.items()
        for number, found in enumerate(answer.result(), start=1)
        for finding in findings_about(shard, number, found)
    ]


def findings_about(shard: str, number: int, found: Standby | Exception) -> Iterator[ShardFinding]:
    """Return what about one replica should be mended."""
    if isinstance(found, Exception):
        yield ShardFinding(shard, f"its replica {number} could not be looked at", str(found))
        return
    if not found.is_one:
        yield ShardFinding(
            shard,
            f"its replica {number} is no standby, so nobody reads it",
            "make it a standby of the shard's primary, or do not name it; if it was promoted, name"
            " it as the primary",
        )
    if found.paused:
        yield ShardFinding(
            shard,
            f"its replica {number} was told not to replay, so what it shows grows older",
            "SELECT pg_wal_replay_resume() on it",
        )
    if found.collation_stored != found.collation_actual:
        yield ShardFinding(
            shard,
            f"its replica {number} compares text by version {found.collation_actual} of a collation"
            f" whose indexes were built by {found.collation_stored}, and may not find it",
            "use the operating system image of its primary",
        )


def _standby(conn: Connection) -> Standby:
    version = conn.scalar(text("SELECT CAST(current_setting('server_version_num') AS int)"))
    has_versions = int(version or 0) >= _COLLATION_VERSIONS
    return Standby(*conn.execute(_LOOK if has_versions else _OLDER_LOOK).one())


_LOOK: Final = text("""
    SELECT pg_is_in_recovery(),
           CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
           datcollversion, pg_database_collation_actual_version(oid)
      FROM pg_database WHERE datname = current_database()
""")
_OLDER_LOOK: Final = text("""
    SELECT pg_is_in_recovery(),
           CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
           CAST(NULL AS text), CAST(NULL AS text)
""")
