"""Where each shard stands, and whether its tables are those of the others."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

from sqlalchemy import URL, Connection, NullPool

from datapatterns.errors import ShardUnavailableError
from datapatterns.sharding.engines import driver_engine
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.migrating.catalogs import invalid_indexes, read_catalog
from datapatterns.sharding.migrating.drift import (
    Catalog,
    SchemaDifference,
    drift,
    most_common,
    other_orders,
)
from datapatterns.sharding.migrating.environment import AlembicEnvironment
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.sql.migration_status import migration_status
from datapatterns.transactions import reading

Found = TypeVar("Found")

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ShardSchema:
    """Where the tables of one shard stand.

    Attributes:
        shard: Its name.
        state: ``alike``: as most shards; ``differs``; ``unavailable``: it did not answer.
        heads: At which of the application's revisions it is; none where it was never migrated.
        library: At which of the library's.
        fingerprint: Of what its catalog says; equal where tables are.
        differences: What it has otherwise than most shards.
        invalid_indexes: What CREATE INDEX CONCURRENTLY has left behind, or is at; nobody uses them.
        other_orders: Tables whose columns stand in another order, which does no harm.
        server: The major version of PostgreSQL. Other versions may put the same into other words.
    """

    shard: str
    state: Literal["alike", "differs", "unavailable"]
    heads: tuple[str, ...] = ()
    library: str | None = None
    fingerprint: str | None = None
    differences: tuple[SchemaDifference, ...] = ()
    invalid_indexes: tuple[str, ...] = ()
    other_orders: tuple[str, ...] = ()
    server: int | None = None

    @property
    def is_sound(self) -> bool:
        """Whether its tables are those of the others, with no index left half built."""
        return self.state == "alike" and not self.invalid_indexes


@dataclass(frozen=True, slots=True)
class ShardLook:
    """What one shard says of itself."""

    shard: str
    heads: tuple[str, ...]
    library: str | None
    catalog: Catalog
    invalid_indexes: tuple[str, ...]
    server: int


def look_at(
    shard: str,
    url: URL,
    environment: AlembicEnvironment | None,
    *,
    schema: str = DEFAULT_SCHEMA,
) -> ShardLook:
    """Ask one shard where it stands; changes nothing.

    Raises:
        ShardUnavailableError: It does not answer.
    """
    with looking_at(shard, url) as conn:
        heads = environment.heads_in(conn) if environment is not None else frozenset[str]()
        version = conn.dialect.server_version_info or (0,)
        return ShardLook(
            shard,
            tuple(sorted(heads)),
            migration_status(conn, schema=schema).revision,
            read_catalog(conn, schema=schema),
            tuple(invalid_indexes(conn, schema=schema)),
            int(version[0]),
        )


def compared(
    shards: Mapping[str, URL], looks: Mapping[str, ShardLook | None]
) -> tuple[ShardSchema, ...]:
    """Return where each shard stands beside most of those that have answered."""
    usual = most_common(found.catalog for _, found in sorted(looks.items()) if found is not None)
    return tuple(_beside(shard, looks.get(shard), usual) for shard in sorted(shards))


def asked(shards: Mapping[str, URL], ask: Callable[[str], Found]) -> dict[str, Found | None]:
    """Ask all shards at once; None for one that does not answer."""

    def answer(shard: str) -> Found | None:
        try:
            return ask(shard)
        except ShardUnavailableError:
            return None

    with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(shards))) as pool:
        return dict(zip(shards, pool.map(answer, shards), strict=True))


@contextmanager
def looking_at(shard: str, url: URL) -> Iterator[Connection]:
    """Give a connection to a shard, whatever its tables are; nothing is changed.

    Raises:
        ShardUnavailableError: It does not answer.
    """
    engine = driver_engine(url, poolclass=NullPool)
    try:
        with shard_errors(shard), engine.connect() as conn, reading(conn):
            yield conn
    finally:
        engine.dispose()


def _beside(shard: str, look: ShardLook | None, usual: Catalog | None) -> ShardSchema:
    if look is None or usual is None:
        return ShardSchema(shard, "unavailable")
    differences = drift(usual, look.catalog)
    return ShardSchema(
        shard,
        "differs" if differences else "alike",
        look.heads,
        look.library,
        look.catalog.fingerprint,
        differences,
        look.invalid_indexes,
        other_orders(usual, look.catalog),
        look.server,
    )
