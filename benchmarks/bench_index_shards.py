"""Find a row of four shards by its email: through an index over them, or asking all of them.

Without an index over shards, each shard has an index of PostgreSQL's on the column. Four databases
of one server stand for four servers: what is told apart is the work, not the network.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any

from sqlalchemy import BigInteger, Engine, Text, create_engine, event, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.index_table import IndexTable, ShardIndexes
from datapatterns.migrations import Migrations
from datapatterns.sharding import EntityGroup, Hash, ShardCluster

CASES = ("objects", "columns", "many")
OPERATIONS = 100
ROWS = 20_000
MANY = 50
SHARDS = 4

TENANTS = EntityGroup("tenant", strategy=Hash(buckets=64))


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Member(Base):
    """Who is found by an email."""

    __tablename__ = "member"
    __shard__ = TENANTS.by("tenant_id")

    tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    email: Mapped[str] = mapped_column(Text, index=True)


BY_EMAIL = IndexTable("member_by_email", on=[Member.email], unique=True, mode="reserve")
INDEXES = ShardIndexes([BY_EMAIL])


@contextmanager
def claim(case: str) -> Iterator[Claim]:
    """Sessions over the same rows, with the index and without."""
    with DataLayer.embedded() as layer, ExitStack() as stack:
        cluster = stack.enter_context(_filled(layer.engine))
        by_index, fanning_out = _READS[case]
        _check_round_trips(cluster, by_index)
        yield Claim(
            _TITLES[case],
            "look-ups",
            [
                Contestant("index over shards", "ours", _repeated(cluster, by_index)),
                Contestant(
                    "all shards, an index on each", "rival", _repeated(cluster, fanning_out)
                ),
            ],
        )


@contextmanager
def _filled(engine: Engine) -> Iterator[ShardCluster]:
    urls = {}
    with engine.connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        for number in range(SHARDS):
            name = f"bench_index_shards_{number}"
            conn.execute(text(f"CREATE DATABASE {name}"))
            urls[f"s{number}"] = make_url(engine.url).set(database=name)
    for url in urls.values():
        Migrations({"main": url}).upgrade()
        of_shard = create_engine(url)
        Base.metadata.create_all(of_shard)
        of_shard.dispose()
    with ShardCluster(
        control=urls["s0"], shards=urls, groups=[TENANTS], indexes=INDEXES, poll_seconds=60
    ) as cluster:
        cluster.create_map()
        for shard, numbers in cluster.placed(TENANTS, range(ROWS), key=lambda n: n % 97).items():
            with cluster.begin_bulk(TENANTS, shard) as conn:
                rows = [{"tenant_id": n % 97, "id": n, "email": _email(n)} for n in numbers]
                conn.execute(insert(Member), rows)
        INDEXES.create(cluster)
        INDEXES.build(cluster)
        for shard_engine in cluster.engines.values():
            with shard_engine.begin() as conn:
                conn.execute(text("ANALYZE"))
        yield cluster


def _email(number: int) -> str:
    return f"member-{number}@example.org"


Read = Callable[[ShardCluster, int], Any]

_ALL_SHARDS = {"index": None, "scatter": True}


def _object(cluster: ShardCluster, number: int, **options: Any) -> None:  # noqa: ANN401 -- execution options
    statement = select(Member).where(Member.email == _email(number))
    with cluster.session() as session:
        session.scalars(statement, execution_options=options).one()


def _columns(cluster: ShardCluster, number: int, **options: Any) -> None:  # noqa: ANN401 -- execution options
    statement = select(Member.tenant_id, Member.id).where(Member.email == _email(number))
    with cluster.session() as session:
        session.execute(statement, execution_options=options).one()


def _many(cluster: ShardCluster, number: int) -> None:
    wanted = [_email((number + more) % ROWS) for more in range(MANY)]
    with cluster.session() as session:
        assert len(BY_EMAIL.lookup_many(session, wanted)) == MANY


def _many_everywhere(cluster: ShardCluster, number: int) -> None:
    wanted = [_email((number + more) % ROWS) for more in range(MANY)]
    statement = select(*Member.__table__.columns).where(Member.email.in_(wanted))
    with cluster.session() as session:
        assert len(session.execute(statement, execution_options=_ALL_SHARDS).all()) == MANY


_READS: dict[str, tuple[Read, Read]] = {
    "objects": (_object, lambda cluster, number: _object(cluster, number, **_ALL_SHARDS)),
    "columns": (_columns, lambda cluster, number: _columns(cluster, number, **_ALL_SHARDS)),
    "many": (_many, _many_everywhere),
}
_TITLES = {
    "objects": "an object of 4 shards by its email",
    "columns": "the key of a row of 4 shards by its email",
    "many": f"rows of 4 shards by {MANY} emails each",
}


def _repeated(cluster: ShardCluster, read: Read) -> Callable[[], int]:
    numbers = cycle(range(0, ROWS, 7))

    def run() -> int:
        for _ in range(OPERATIONS):
            read(cluster, next(numbers))
        return OPERATIONS

    return run


def _check_round_trips(cluster: ShardCluster, read: Read) -> None:
    """See that statements go to each shard at most once for entries, and once for rows."""
    sent: list[str] = []
    sides = cluster.session().shard_access.companions.side_engines
    with ExitStack() as stack:
        for kind, engines in (("entries", sides), ("rows", cluster.engines)):
            for shard, engine in engines.items():

                def note(*_: Any, what: str = f"{kind} on {shard}") -> None:  # noqa: ANN401 -- as SQLAlchemy calls it
                    sent.append(what)

                event.listen(engine, "before_cursor_execute", note)
                stack.callback(event.remove, engine, "before_cursor_execute", note)
        read(cluster, 1)
    assert len(sent) == len(set(sent)), sent
    assert {what.split()[0] for what in sent} == {"entries", "rows"}
