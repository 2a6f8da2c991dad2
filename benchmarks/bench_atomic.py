"""Write to several shards in one transaction, beside commits one after the other."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import BigInteger, Update, create_engine, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.migrations import Migrations
from datapatterns.sharding import EntityGroup, Hash, ShardCluster

CASES = (1, 2, 3)
TRANSACTIONS = 50

ACCOUNTS = EntityGroup("account", strategy=Hash(buckets=16))


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Account(Base):
    """What is moved from shard to shard."""

    __tablename__ = "account"
    __shard__ = ACCOUNTS.by("account_id")

    account_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    cents: Mapped[int] = mapped_column(BigInteger)


@contextmanager
def claim(case: int) -> Iterator[Claim]:
    """Three databases of one server; a transaction writes a row on some of them."""
    with DataLayer.embedded() as layer, ExitStack() as stack:
        urls = {}
        with layer.engine.connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            for number in range(3):
                conn.execute(text(f"CREATE DATABASE bench_shard_{number}"))
                urls[f"s{number}"] = make_url(layer.engine.url).set(
                    database=f"bench_shard_{number}"
                )
        for url in urls.values():
            Migrations({"main": url}).upgrade()
            engine = create_engine(url)
            Base.metadata.create_all(engine)
            engine.dispose()
        cluster = stack.enter_context(
            ShardCluster(control=urls["s0"], shards=urls, groups=[ACCOUNTS])
        )
        cluster.create_map()
        keys = [_key_on(cluster, shard) for shard in sorted(urls)][:case]
        for key in keys:
            with cluster.connect(ACCOUNTS, account_id=key) as conn, conn.begin():
                conn.execute(text("INSERT INTO account VALUES (:key, 0)"), {"key": key})
        yield Claim(
            f"transactions that write to {case} shard{'s' if case > 1 else ''}",
            "transactions",
            [
                Contestant("atomically()", "ours", _atomic(cluster, keys)),
                Contestant("commits one after the other", "limit", _by_hand(cluster, keys)),
            ],
        )


def _key_on(cluster: ShardCluster, shard: str) -> int:
    shard_map = cluster.router.map_of(ACCOUNTS)
    return next(key for key in range(1_000) if shard_map.shard_of(key) == shard)


def _atomic(cluster: ShardCluster, keys: list[int]) -> Callable[[], int]:
    def run() -> int:
        for _ in range(TRANSACTIONS):
            with cluster.atomically() as work:
                for key in keys:
                    work.connect(ACCOUNTS, account_id=key).execute(_raise(key))
        return TRANSACTIONS

    return run


def _by_hand(cluster: ShardCluster, keys: list[int]) -> Callable[[], int]:
    """Who dies between two of these commits has done half."""

    def run() -> int:
        for _ in range(TRANSACTIONS):
            with ExitStack() as stack:
                for key in keys:
                    conn = stack.enter_context(cluster.connect(ACCOUNTS, account_id=key))
                    stack.enter_context(conn.begin())
                    conn.execute(_raise(key))
        return TRANSACTIONS

    return run


def _raise(key: int) -> Update:
    return update(Account).where(Account.account_id == key).values(cents=Account.cents + 1)
