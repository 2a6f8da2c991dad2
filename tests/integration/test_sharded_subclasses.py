"""Classes that inherit, in tables of their own or in their parent's, loaded and written by key."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import (
    URL,
    BigInteger,
    FetchedValue,
    ForeignKeyConstraint,
    create_engine,
    select,
    text,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    selectin_polymorphic,
    undefer,
    with_polymorphic,
)

from datapatterns.errors import ScatterRefusedError, StaleShardMapError, UnroutableStatementError
from datapatterns.sharding import EntityGroup, Hash, ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.shard_model import named
from tests.integration.test_single_shard_statements import sent

pytestmark = pytest.mark.postgres

firms = EntityGroup("firm", strategy=Hash(buckets=16))


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    __shard__ = firms.by("firm")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012 -- as SQLAlchemy reads it

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    firm: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str]
    name: Mapped[str | None]


class Worker(Person):
    __tablename__ = "worker"
    __table_args__ = (ForeignKeyConstraint(["firm", "number"], ["person.firm", "person.number"]),)
    __mapper_args__ = {"polymorphic_identity": "worker"}  # noqa: RUF012

    firm: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    wage: Mapped[int | None]
    note: Mapped[str | None] = mapped_column(deferred=True)
    changes: Mapped[int] = mapped_column(server_default=text("0"), server_onupdate=FetchedValue())


class Foreman(Worker):
    __tablename__ = "foreman"
    __table_args__ = (ForeignKeyConstraint(["firm", "number"], ["worker.firm", "worker.number"]),)
    __mapper_args__ = {"polymorphic_identity": "foreman"}  # noqa: RUF012

    firm: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    team: Mapped[str | None]


class Guest(Person):
    """In the table of its parent."""

    __mapper_args__ = {"polymorphic_identity": "guest"}  # noqa: RUF012

    host: Mapped[str | None]


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    for url in urls:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        engine.dispose()
    with ShardCluster(control=urls[0], shards=named(urls), groups=[firms]) as cluster:
        cluster.create_map()
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> Iterator[ShardCluster]:
    with shop.session(atomic=True) as session, session.begin():
        for firm in range(6):
            session.add_all(
                [
                    Person(firm=firm, number=1, name="p"),
                    Worker(firm=firm, number=2, wage=firm, note="n"),
                    Foreman(firm=firm, number=3, wage=firm, team=f"t{firm}"),
                    Guest(firm=firm, number=4, host="h"),
                ]
            )
    yield shop
    for engine in shop.engines.values():
        with engine.begin() as conn:
            conn.execute(text("TRUNCATE person, worker, foreman"))


@contextmanager
def given_away(cluster: ShardCluster, firm: int) -> Iterator[None]:
    """The shard does not own the bucket any more, and the router does not know it."""
    shard_map = cluster.router.map_of(firms)
    change = text("UPDATE datapatterns.bucket SET state = :state WHERE bucket = :bucket")
    bucket = shard_map.strategy.bucket(firm)
    for state in ("moved", "owned"):
        with cluster.engines[shard_map.shard_of(firm)].begin() as conn:
            conn.execute(change, {"state": state, "bucket": bucket})
        if state == "moved":
            yield


KINDS = [Person, Worker, Foreman, Guest]


@pytest.mark.parametrize("pinned", [False, True])
def test_objects_are_of_their_own_class_and_load_what_they_lack(
    cluster: ShardCluster,
    pinned: bool,  # noqa: FBT001 -- a case
) -> None:
    for firm in range(6):
        with cluster.on(firms, firm=firm) if pinned else cluster.session() as session:
            for number, kind in enumerate(KINDS, 1):
                assert type(session.get(Person, (number, firm))) is kind
            foreman: Any = session.get(Person, (3, firm))
            # None of it was in the row of the parent's table.
            assert (foreman.wage, foreman.note, foreman.team) == (firm, None, f"t{firm}")
            worker: Any = session.get(Person, (2, firm))
            session.refresh(worker, ["note"])
            session.expire(worker, ["wage"])
            assert (worker.wage, worker.note) == (firm, "n")
            guest: Any = session.get(Person, (4, firm))
            assert guest.host == "h"
            assert session.get(Worker, (1, firm)) is None
            assert session.get(Guest, (3, firm)) is None


def test_what_the_server_has_changed_in_a_part_is_read_again(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        worker = session.get_one(Worker, (2, 5))
        worker.wage = 1
        session.flush()
        assert worker.changes == 0


def test_all_columns_come_along_if_that_is_asked_for(cluster: ShardCluster) -> None:
    everybody = with_polymorphic(Person, "*")
    other = with_polymorphic(Person, [Worker, Foreman], flat=True, aliased=True)
    for statement in (
        select(Person)
        .where(Person.firm == 5)
        .options(selectin_polymorphic(Person, [Worker, Foreman])),
        select(everybody).where(everybody.firm == 5).options(undefer(everybody.Worker.note)),
        select(other).where(other.firm == 5),
    ):
        with cluster.session() as session, sent(cluster) as statements:
            found: dict[str, Any] = {
                type(each).__name__: each for each in session.scalars(statement)
            }
            asked = len(statements)
            assert found.keys() == {kind.__name__ for kind in KINDS}
            assert (found["Foreman"].team, found["Worker"].wage) == ("t5", 5)
            assert len(statements) == asked


def test_a_part_is_not_read_where_the_bucket_has_left(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        worker: Any = session.get(Person, (2, 5))
        with given_away(cluster, 5), pytest.raises(StaleShardMapError):
            _ = worker.wage


def test_objects_of_a_statement_that_names_no_key_are_not_read_from_it(
    cluster: ShardCluster,
) -> None:
    everywhere = select(Person).from_statement(select(Person))
    with cluster.session(scatter=True) as session:
        with pytest.raises(ScatterRefusedError):
            session.scalars(everywhere)
        with pytest.raises(UnroutableStatementError, match="shard="):
            session.scalars(select(Person).from_statement(text("SELECT * FROM person")))
        mine = select(Person).where(Person.firm == 5).order_by(Person.number)
        found = session.scalars(select(Person).from_statement(mine)).all()
        assert [type(each) for each in found] == KINDS
        nobody = select(Person).where(Person.firm.in_([]))
        assert session.scalars(select(Person).from_statement(nobody)).all() == []


def test_objects_are_read_from_sql_text_on_one_shard(cluster: ShardCluster) -> None:
    shard = cluster.router.map_of(firms).shard_of(5)
    written = text("SELECT * FROM person WHERE firm = :firm ORDER BY number")
    with cluster.session() as session:
        for given in (written, written.columns(Person.number, Person.firm, Person.kind)):
            statement = select(Person).from_statement(given)
            found = session.scalars(
                statement, {"firm": 5}, execution_options={"shard": shard}
            ).all()
            assert [type(each) for each in found] == KINDS
