"""Build an index over shards, beside INSERT .. SELECT in place, and rows fetched and inserted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from uuid import uuid4

from sqlalchemy import BigInteger, Table, Text, create_engine, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.index_table import BuildPace, IndexTable, ShardIndexes
from datapatterns.migrations import Migrations
from datapatterns.sharding import EntityGroup, Hash, ShardCluster

ROWS = 50_000
CHUNK_ROWS = 10_000
SHARDS = 2

TENANTS = EntityGroup("tenant", strategy=Hash(buckets=16))


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Customer(Base):
    """Found by email over all shards."""

    __tablename__ = "customer"
    __shard__ = TENANTS.by("tenant_id")

    tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    email: Mapped[str] = mapped_column(Text)


BY_EMAIL = IndexTable("customer_by_email", on=[Customer.email], unique=True, mode="reserve")
INDEXES = ShardIndexes([BY_EMAIL])


@contextmanager
def claim() -> Iterator[Claim]:
    """Two databases of one server, which hold half of the rows each."""
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
            control=urls["s0"], shards=urls, groups=[TENANTS], indexes=INDEXES
        ) as cluster:
            cluster.create_map()
            _fill(cluster)
            table = INDEXES.indexes[BY_EMAIL.name].table

            def prepare() -> None:
                INDEXES.drop(cluster, [BY_EMAIL.name])
                INDEXES.create(cluster)

            yield Claim(
                f"an index of {ROWS:,} rows over {SHARDS} shards",
                "rows",
                [
                    Contestant("build(), compared", "ours", _build(cluster), prepare),
                    Contestant("fetched and inserted", "rival", _by_hand(cluster, table), prepare),
                    Contestant("INSERT .. SELECT", "limit", _insert(cluster, table), prepare),
                ],
            )


def _fill(cluster: ShardCluster) -> None:
    for number, rows in enumerate(_batches()):
        placed = cluster.placed(TENANTS, rows, key=lambda row: int(str(row["tenant_id"])))
        for shard, mine in placed.items():
            with cluster.begin_bulk(TENANTS, shard) as conn:
                conn.execute(insert(Customer), mine)
        assert number < ROWS


def _batches() -> Iterator[list[dict[str, object]]]:
    rows = (
        {"tenant_id": number % 1000, "id": number, "email": f"{uuid4().hex}@example.org"}
        for number in range(ROWS)
    )
    while batch := list(islice(rows, CHUNK_ROWS)):
        yield batch


def _build(cluster: ShardCluster) -> Callable[[], int]:
    def run() -> int:
        report = INDEXES.build(cluster, pace=BuildPace(chunk_rows=CHUNK_ROWS))[BY_EMAIL.name]
        assert report.clean
        return report.rows

    return run


def _insert(cluster: ShardCluster, table: Table) -> Callable[[], int]:
    """Make as many entries on each server, where its rows are: no shard has those of another."""
    source = select(Customer.tenant_id, Customer.id, Customer.email, text("gen_random_uuid()"))
    names = ["tenant_id", "id", "email", "claim"]
    statement = insert(table).from_select(names, source.order_by(Customer.email))
    statement = statement.execution_options(preserve_rowcount=True)

    def run() -> int:
        count = 0
        for engine in cluster.engines.values():
            with engine.begin() as conn:
                count += conn.execute(statement).rowcount
        return count

    return run


def _by_hand(cluster: ShardCluster, table: Table) -> Callable[[], int]:
    columns = select(Customer.tenant_id, Customer.id, Customer.email)
    group = INDEXES.indexes[BY_EMAIL.name].group

    def run() -> int:
        count = 0
        for engine in cluster.engines.values():
            with engine.connect() as conn:
                found = conn.execution_options(yield_per=CHUNK_ROWS).execute(columns)
                for chunk in found.mappings().partitions():
                    rows = [{**row, "claim": uuid4()} for row in chunk]
                    placed = cluster.placed(group, rows, key=lambda row: str(row["email"]))
                    for shard, mine in placed.items():
                        with cluster.begin_bulk(group, shard) as there:
                            there.execute(insert(table), mine)
                    count += len(rows)
        return count

    return run
