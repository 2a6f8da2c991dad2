"""Where the story is played: servers, an empty database for each role, and the data set."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice

from platformdirs import user_data_path
from redis import Redis
from sqlalchemy import URL

from datapatterns import DataLayer
from datapatterns.embedded import EmbeddedServers, ValkeyServer
from datapatterns.sharding import ShardCluster
from datapatterns.urls import checked_redis_url, postgres_url
from datapatterns_grocer.databases import MAIN_NAME, SHARD_NAMES, demo_databases
from datapatterns_grocer.dataset import Dataset, Line
from datapatterns_grocer.model import HOUSEHOLDS, OVER_SHARDS
from datapatterns_grocer.projections import DECLARED
from datapatterns_grocer.screen import Screen

KEPT_FOLDER = user_data_path("datapatterns") / "demo"
"""Where servers of the demo's own leave their data when they are asked to."""

LIVE_BASKETS = 3
"""How many baskets of the end are not loaded but shopped live, in front of the audience."""


@dataclass(slots=True)
class Stage:
    """What every chapter works with.

    Attributes:
        redis_server: The server, if it is the demo's own and may be stopped; else None.
        live: The baskets to be shopped in front of the audience, oldest first.
    """

    layer: DataLayer
    dataset: Dataset
    screen: Screen
    redis_server: ValkeyServer | None
    live: list[list[Line]]

    def cluster(self, shards: int | None = None) -> ShardCluster:
        """Return the first so many shards as a cluster, or all, which the caller closes."""
        known = self.layer.settings.shards
        return ShardCluster(
            control=self.layer.engine.url,
            shards={shard: known[shard] for shard in sorted(known)[:shards]},
            groups=[HOUSEHOLDS],
            indexes=OVER_SHARDS,
        )

    def loaded_baskets(self) -> Iterator[list[Line]]:
        """Yield the lines of every basket that is not shopped live."""
        kept_back = {basket[0].basket_id for basket in self.live}
        for basket in self.dataset.baskets():
            if basket[0].basket_id not in kept_back:
                yield basket


@contextmanager
def set_stage(
    *,
    weeks: int,
    screen: Screen,
    database_url: str | None = None,
    redis_url: str | None = None,
    keep: bool = False,
) -> Iterator[Stage]:
    """Start what is not given, make the databases, and clear up at the end.

    Args:
        weeks: How much of the year to read.
        screen: Where progress goes.
        database_url: A server on which databases may be created; else servers are started.
        redis_url: A Redis or Valkey; else one is started.
        keep: Leave the data, and say where they are.
    """
    # Both are looked at before anything starts.
    given = None if database_url is None else postgres_url(database_url, "--database-url")
    if redis_url is not None:
        redis_url = checked_redis_url(redis_url, "--redis-url")
    with ExitStack() as stack:
        dataset = stack.enter_context(closing(Dataset(weeks)))
        servers: EmbeddedServers | None = None
        if database_url is None or redis_url is None:
            servers = stack.enter_context(EmbeddedServers(KEPT_FOLDER if keep else None))
        redis_server = None if redis_url or servers is None else servers.valkey()
        urls: list[URL] = []
        for server, names in _places(given, servers):
            urls += stack.enter_context(demo_databases(server, names, keep=keep))
        layer = stack.enter_context(
            closing(
                DataLayer(
                    urls[0],
                    redis_url=redis_server.url if redis_server else redis_url,
                    shards={f"s{number}": url for number, url in enumerate(urls[1:])},
                    redis_prefix=MAIN_NAME,
                    projections=DECLARED,
                )
            )
        )
        layer.check()
        _forget_keys(layer.redis)  # of a demo that was killed
        if not keep:
            stack.callback(_forget_keys, layer.redis)
        layer.migrations.upgrade()
        live = list(dataset.baskets())[-LIVE_BASKETS:]
        yield Stage(layer, dataset, screen, redis_server, live)
        if keep:
            where = KEPT_FOLDER if database_url is None else "databases named datapatterns_demo*"
            screen.say(f"the data stay: {where}; running the demo again makes them anew")


def _places(
    given: URL | None, servers: EmbeddedServers | None
) -> list[tuple[URL, tuple[str, ...]]]:
    """Return which server holds which databases: the given one all, else each one of its own."""
    if given is not None:
        return [(given, (MAIN_NAME, *SHARD_NAMES))]
    assert servers is not None
    return [
        (servers.postgres(name.removeprefix("datapatterns_")).url, (name,))
        for name in (MAIN_NAME, *SHARD_NAMES)
    ]


def _forget_keys(client: Redis) -> None:
    """Delete the demo's keys, and nobody else's."""
    for pattern in (f"{MAIN_NAME}:*", f"{{{MAIN_NAME}:*"):
        for keys in _batched(client.scan_iter(match=pattern, count=1_000)):
            client.unlink(*keys)


def _batched(keys: Iterable[bytes], size: int = 500) -> Iterator[list[bytes]]:
    """Yield ``keys`` in lists of at most ``size``."""
    remaining = iter(keys)
    while batch := list(islice(remaining, size)):
        yield batch
