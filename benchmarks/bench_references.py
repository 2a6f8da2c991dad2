"""Write rows that refer to rows of another shard, beside the same writes without a look at them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

from sqlalchemy import BigInteger, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.migrations import Migrations
from datapatterns.sharding import EntityGroup, Hash, ShardCluster, ShardForeignKey

ANYHOW = "two shards, written to anyhow"
CASES = ("one shard", "two shards", ANYHOW)
TRANSACTIONS = 50

BUYERS = EntityGroup("buyer", strategy=Hash(buckets=16))
SHOPS = EntityGroup("shop", strategy=Hash(buckets=16))


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Buyer(Base):
    """What is referred to."""

    __tablename__ = "buyer"
    __shard__ = BUYERS.by("id")

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    bought: Mapped[int] = mapped_column(BigInteger)


class Sale(Base):
    """What refers."""

    __tablename__ = "sale"
    __shard__ = SHOPS.by("shop_id")

    shop_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    buyer_id: Mapped[int] = mapped_column(BigInteger, index=True)


@contextmanager
def claim(case: str) -> Iterator[Claim]:
    """Two databases of one server; a transaction inserts a sale, and may write to its buyer."""
    with DataLayer.embedded() as layer, ExitStack() as stack:
        urls = {}
        with layer.engine.connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            for number in range(2):
                conn.execute(text(f"CREATE DATABASE bench_shard_{number}"))
                urls[f"s{number}"] = make_url(layer.engine.url).set(
                    database=f"bench_shard_{number}"
                )
        for url in urls.values():
            Migrations({"main": url}).upgrade()
            engine = create_engine(url)
            Base.metadata.create_all(engine)
            engine.dispose()
        refers = ShardForeignKey(Sale.buyer_id, Buyer.id, check="on_write")
        checked, plainly = (
            stack.enter_context(
                ShardCluster(
                    control=urls["s0"], shards=urls, groups=[BUYERS, SHOPS], references=references
                )
            )
            for references in ([refers], [])
        )
        checked.create_map()
        shop = _key_on(checked, SHOPS, "s0")
        buyer = _key_on(checked, BUYERS, "s0" if case == "one shard" else "s1")
        with checked.session() as session, session.begin():
            session.add(Buyer(id=buyer, bought=0))
        anyhow = case == ANYHOW
        numbers = count()
        yield Claim(
            f"sales of a shop to a buyer, on {case}",
            "transactions",
            [
                Contestant(
                    "checked", "ours", _selling(checked, shop, buyer, numbers, anyhow=anyhow)
                ),
                Contestant(
                    "not checked", "limit", _selling(plainly, shop, buyer, numbers, anyhow=anyhow)
                ),
            ],
        )


def _key_on(cluster: ShardCluster, group: EntityGroup, shard: str) -> int:
    shard_map = cluster.router.map_of(group)
    return next(key for key in range(1, 1_000) if shard_map.shard_of(key) == shard)


def _selling(
    cluster: ShardCluster, shop: int, buyer: int, numbers: Iterator[int], *, anyhow: bool
) -> Callable[[], int]:
    def run() -> int:
        for _ in range(TRANSACTIONS):
            with cluster.session(atomic=True) as session, session.begin():
                session.add(Sale(shop_id=shop, id=next(numbers), buyer_id=buyer))
                if anyhow:
                    session.get_one(Buyer, buyer).bought = next(numbers)
        return TRANSACTIONS

    return run
