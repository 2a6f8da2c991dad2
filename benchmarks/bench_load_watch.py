"""Read a row by its key, with and without counting what shards are asked; and the count alone."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from random import Random

from sqlalchemy import BigInteger, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.migrations import Migrations
from datapatterns.sharding import EntityGroup, Hash, LoadWatch, ShardCluster

CASES = ("session.get", "session.get of keys that change all the time", "the count alone")
READS = 400
COUNTS = 20_000
KEYS = 5_000

TENANTS = EntityGroup("tenant", strategy=Hash(buckets=1024))


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Tenant(Base):
    """What is read."""

    __tablename__ = "tenant"
    __shard__ = TENANTS.by("tenant_id")

    tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


@contextmanager
def claim(case: str) -> Iterator[Claim]:
    """One shard on one server, opened twice."""
    with DataLayer.embedded() as layer, ExitStack() as stack:
        url = layer.engine.url
        Migrations({"main": url}).upgrade()
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        with engine.begin() as conn:
            conn.execute(text("SELECT 1"))
        engine.dispose()
        clusters = [
            stack.enter_context(
                ShardCluster(control=url, shards={"s0": url}, groups=[TENANTS], watch_load=watched)
            )
            for watched in (True, False)
        ]
        clusters[0].create_map()
        with clusters[0].begin_bulk(TENANTS, "s0") as conn:
            conn.execute(
                text("INSERT INTO tenant SELECT generate_series(0, :last)"), {"last": KEYS - 1}
            )
        # As tenants are: a few are asked for all the time, most of them now and then.
        draw = Random(7)  # noqa: S311 -- a sample
        skewed = draw.choices(range(KEYS), [1 / (rank + 1) for rank in range(KEYS)], k=10_000)
        keys = [*range(KEYS)] if "change" in case else skewed
        if case == "the count alone":
            yield _count_alone(clusters[0], keys)
            return
        watched, plain = (_gets(cluster, keys) for cluster in clusters)
        yield Claim(
            f"{case}, counted",
            "reads",
            [
                Contestant("watch_load=True", "ours", watched),
                Contestant("watch_load=False", "limit", plain),
            ],
        )


def _gets(cluster: ShardCluster, keys: list[int]) -> Callable[[], int]:
    coming = cycle(keys)

    def run() -> int:
        with cluster.session() as session:
            for _ in range(READS):
                session.get(Tenant, next(coming), populate_existing=True)
        return READS

    return run


def _count_alone(cluster: ShardCluster, keys: list[int]) -> Claim:
    group_id = cluster.router.map_of(TENANTS).group_id
    hits = [((TENANTS.strategy.bucket(key),), (key,)) for key in keys]
    watch = cluster.load
    assert isinstance(watch, LoadWatch)
    coming, same = cycle(hits), cycle(hits)
    counted: dict[int, int] = {}

    def count() -> int:
        for _ in range(COUNTS):
            buckets, key = next(coming)
            watch.add(group_id, buckets, key, writes=False, busy_us=300)
        return COUNTS

    def count_in_a_dict() -> int:
        for _ in range(COUNTS):
            _, (key,) = next(same)
            counted[key] = counted.get(key, 0) + 1
        return COUNTS

    return Claim(
        "a hit counted, by bucket and by key",
        "hits",
        [
            Contestant("LoadWatch.add()", "ours", count),
            Contestant("one dict, no bounds, no threads", "limit", count_in_a_dict),
        ],
    )
