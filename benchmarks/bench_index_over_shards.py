"""Write rows of which a key is unique over shards, beside rows without an index, and by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from uuid import uuid4

from sqlalchemy import BigInteger, Text, create_engine, insert, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.index_table import IndexTable, ShardIndexes
from datapatterns.migrations import Migrations
from datapatterns.sharding import EntityGroup, Hash, ShardCluster

CASES = (1, 100)
TRANSACTIONS = 40
SHARDS = 2

TENANTS = EntityGroup("tenant", strategy=Hash(buckets=16))
RESERVED = EntityGroup("reserved", strategy=Hash(buckets=16), key=Text)


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Customer(Base):
    """Found by email over all shards."""

    __tablename__ = "customer"
    __shard__ = TENANTS.by("tenant_id")

    tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    email: Mapped[str] = mapped_column(Text)


class Plain(Base):
    """The same without an index."""

    __tablename__ = "plain"
    __shard__ = TENANTS.by("tenant_id")

    tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    email: Mapped[str] = mapped_column(Text)


class Reserved(Base):
    """Emails as somebody would reserve them by hand: who dies in between keeps them for ever."""

    __tablename__ = "reserved"
    __shard__ = RESERVED.by("email")

    email: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[int] = mapped_column(BigInteger)
    id: Mapped[int] = mapped_column(BigInteger)


BY_EMAIL = IndexTable("customer_by_email", on=[Customer.email], unique=True, mode="reserve")


@contextmanager
def claim(case: int) -> Iterator[Claim]:
    """Two databases of one server; a transaction inserts some rows of one tenant."""
    indexes = ShardIndexes([BY_EMAIL])
    with DataLayer.embedded() as layer:
        urls = {}
        with layer.engine.connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            for number in range(SHARDS):
                conn.execute(text(f"CREATE DATABASE bench_shard_{number}"))
                urls[f"s{number}"] = make_url(layer.engine.url).set(
                    database=f"bench_shard_{number}"
                )
        for url in urls.values():
            Migrations({"main": url}).upgrade()
            engine = create_engine(url)
            Base.metadata.create_all(engine)
            engine.dispose()
        with ShardCluster(
            control=urls["s0"], shards=urls, groups=[TENANTS, RESERVED], indexes=indexes
        ) as cluster:
            cluster.create_map()
            indexes.create(cluster)
            yield Claim(
                f"inserts of {case} row{'s' if case > 1 else ''} a transaction",
                "transactions",
                [
                    Contestant("with an index over shards", "ours", _indexed(cluster, case)),
                    Contestant("reserved by hand", "rival", _by_hand(cluster, case)),
                    Contestant("without an index", "limit", _plain(cluster, case)),
                ],
            )


def _values(rows: int) -> list[dict[str, object]]:
    tenant = next(_numbers)
    return [
        {"tenant_id": tenant, "id": number, "email": f"{uuid4().hex}@example.org"}
        for number in range(rows)
    ]


_numbers = count()


def _indexed(cluster: ShardCluster, rows: int) -> Callable[[], int]:
    return _inserting(cluster, Customer, rows)


def _plain(cluster: ShardCluster, rows: int) -> Callable[[], int]:
    return _inserting(cluster, Plain, rows)


def _inserting(cluster: ShardCluster, into: type[Base], rows: int) -> Callable[[], int]:
    def run() -> int:
        for _ in range(TRANSACTIONS):
            with cluster.session() as session, session.begin():
                session.execute(insert(into), _values(rows))
        return TRANSACTIONS

    return run


def _by_hand(cluster: ShardCluster, rows: int) -> Callable[[], int]:
    def run() -> int:
        for _ in range(TRANSACTIONS):
            values = _values(rows)
            placed = cluster.placed(RESERVED, values, key=lambda row: str(row["email"]))
            for mine in placed.values():
                with cluster.session() as session, session.begin():
                    session.execute(insert(Reserved), mine)
            with cluster.session() as session, session.begin():
                session.execute(insert(Plain), values)
        return TRANSACTIONS

    return run
