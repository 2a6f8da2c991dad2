"""Keys of many types, of several columns, computed by the server, and under a predicate."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    LargeBinary,
    String,
    Text,
    create_engine,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.errors import (
    IndexDefinitionError,
    IndexKeyTakenError,
    ShardKeyError,
)
from datapatterns.index_table import IndexTable, ShardIndexes
from datapatterns.sharding import Composite, EntityGroup, Hash, ListMap, ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.shard_model import named

pytestmark = pytest.mark.postgres

ODD = 'Ünï\'codé \\ "x" %s :y {z} 🦆\t\n'

places = EntityGroup(
    "place",
    strategy=Composite(ListMap({"eu": 0, "us": 1}), Hash(buckets=16)),
    key=(Text, BigInteger),
)


class Base(DeclarativeBase):
    pass


class Device(Base):
    __tablename__ = "device"
    __shard__ = places.by("region", "owner")

    region: Mapped[str] = mapped_column(Text, primary_key=True)
    owner: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    code: Mapped[str] = mapped_column(String(40), primary_key=True)
    serial: Mapped[UUID | None]
    number: Mapped[int | None]
    model: Mapped[str | None] = mapped_column(Text)
    made: Mapped[date | None] = mapped_column(Date)
    at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    raw: Mapped[bytes | None] = mapped_column(LargeBinary)
    live: Mapped[bool] = mapped_column(Boolean, default=True)
    extra: Mapped[Any] = mapped_column(JSONB, nullable=True)


by_serial = IndexTable(
    "device_by_serial", on=[Device.serial], unique=True, include=[Device.extra], mode="reserve"
)
by_number = IndexTable("device_by_number", on=[Device.number], unique=True, mode="reserve")
by_model = IndexTable(
    "device_by_model", on=[Device.model, Device.made, Device.live], unique=True, mode="reserve"
)
by_moment = IndexTable("device_by_moment", on=[Device.model, Device.at], mode="reserve")
by_bytes = IndexTable("device_by_bytes", on=[Device.model, Device.raw], mode="reserve")
by_lower = IndexTable("device_by_lower", on=[func.lower(Device.model, type_=Text)], mode="reserve")
alive = IndexTable(
    "device_alive", on=[Device.code], unique=True, where=Device.live.is_(True), mode="reserve"
)
ALL = ShardIndexes([by_serial, by_number, by_model, by_moment, by_bytes, by_lower, alive])


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    for url in urls:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        engine.dispose()
    with ShardCluster(control=urls[0], shards=named(urls), groups=[places], indexes=ALL) as cluster:
        cluster.create_map()
        ALL.create(cluster)
        ALL.create(cluster)
        ALL.build(cluster)
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    tables = ["device", *(index.name for index in ALL.declared)]
    for engine in shop.engines.values():
        with engine.begin() as conn:
            conn.execute(text(f"TRUNCATE {', '.join(tables)}"))
    return shop


def put(cluster: ShardCluster, *devices: Device) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add_all(devices)


def found(cluster: ShardCluster, index: IndexTable, *key: object) -> list[str]:
    with cluster.session() as session:
        return [row.code for row in index.lookup(session, *key)]


@pytest.mark.parametrize("key", ["", ODD, "a" * 1_000, "A", " a ", "null"])
def test_text_is_found_as_it_is(cluster: ShardCluster, key: str) -> None:
    put(cluster, Device(region="eu", owner=1, code="x", model=key, made=date(2024, 2, 29)))

    assert found(cluster, by_model, key, date(2024, 2, 29), True) == ["x"]
    assert found(cluster, by_lower, key.lower()) == ["x"]
    with pytest.raises(IndexKeyTakenError):
        put(cluster, Device(region="us", owner=2, code="y", model=key, made=date(2024, 2, 29)))


def test_uuids_and_integers_are_found(cluster: ShardCluster) -> None:
    serial = UUID(int=2**127 + 5)
    put(
        cluster,
        Device(region="eu", owner=-(2**63), code=ODD, serial=serial, number=-7, extra={"a": None}),
    )
    put(cluster, Device(region="us", owner=2, code="null", serial=UUID(int=1), number=0))

    assert found(cluster, by_serial, serial) == found(cluster, by_number, -7) == [ODD]
    assert found(cluster, by_number, 0) == ["null"]
    with cluster.session() as session:
        [entry] = by_serial.keys(session, serial)
        assert entry.included == {"extra": {"a": None}}
        with pytest.raises(ShardKeyError):
            by_number.lookup(session, "0")


def test_a_moment_is_one_key_in_every_time_zone_of_writers(cluster: ShardCluster) -> None:
    moment = datetime(2024, 3, 31, 1, 30, tzinfo=UTC)
    put(cluster, Device(region="eu", owner=1, code="x", model="m", at=moment, raw=b"\0\xff"))
    with cluster.on(places, region="eu", owner=1) as session, session.begin():
        session.execute(text("SET LOCAL TimeZone = 'Asia/Kathmandu'"))
        session.execute(text("SET LOCAL bytea_output = 'escape'"))
        session.get_one(Device, ("eu", 1, "x")).live = False
        session.add(Device(region="eu", owner=1, code="y", model="m", at=moment, raw=b"\0\xff"))

    assert found(cluster, by_moment, "m", moment) == ["x", "y"]
    assert found(cluster, by_bytes, "m", b"\0\xff") == ["x", "y"]


def test_rows_enter_and_leave_by_the_predicate(cluster: ShardCluster) -> None:
    put(cluster, Device(region="eu", owner=1, code="x", live=False))
    put(cluster, Device(region="us", owner=1, code="x"))
    assert found(cluster, alive, "x") == ["x"]

    with cluster.session() as session:
        session.get_one(Device, ("eu", 1, "x")).live = True
        with pytest.raises(IndexKeyTakenError):
            session.commit()
    with cluster.session() as session, session.begin():
        session.get_one(Device, ("us", 1, "x")).live = False
    with cluster.session() as session, session.begin():
        session.get_one(Device, ("eu", 1, "x")).live = True
    with cluster.session() as session:
        assert [row.region for row in alive.lookup(session, "x")] == ["eu"]


def test_a_key_of_which_a_part_is_null_has_no_entry(cluster: ShardCluster) -> None:
    put(cluster, Device(region="eu", owner=1, code="x", model="m"))
    with cluster.session(scatter=True) as session:
        assert session.execute(select(ALL.find(by_model.name).table)).all() == []
    with pytest.raises(ValueError, match="such rows aren't indexed"):
        found(cluster, by_model, "m", None, True)
    with cluster.session() as session:
        session.get_one(Device, ("eu", 1, "x")).made = date(2024, 1, 1)
        session.commit()
    assert found(cluster, by_model, "m", date(2024, 1, 1), True) == ["x"]


def test_rows_of_several_indexes_are_given_up_together(cluster: ShardCluster) -> None:
    put(cluster, Device(region="eu", owner=1, code="x", serial=UUID(int=1), number=1))
    with pytest.raises(IndexKeyTakenError, match="device_by_serial"):
        put(cluster, Device(region="us", owner=1, code="y", serial=UUID(int=1), number=2))

    table = ALL.indexes["device_by_number"].table
    with cluster.session(scatter=True) as session:
        assert session.scalars(select(table.c.number)).all() == [1]


def test_an_expression_says_its_type() -> None:
    with pytest.raises(IndexDefinitionError, match=r"type lower\(device.model\) is.*type_=Text"):
        IndexTable("untyped", on=[func.lower(Device.model)], mode="reserve")


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("model text COLLATE loose", "different strings are equal"),
        ("model citext", "citext"),
        ("code varchar(40), model numeric", "written in two ways"),
    ],
)
def test_keys_of_which_equal_ones_differ_are_refused_by_the_server(
    databases: Databases, key: str, problem: str
) -> None:
    class Own(DeclarativeBase):
        pass

    class Thing(Own):
        __tablename__ = "thing"
        __shard__ = EntityGroup("thing").by("id")

        id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
        model: Mapped[str] = mapped_column(Text)

    index = IndexTable("thing_by_model", on=[Thing.model], mode="reserve")
    url = databases.new()
    engine = create_engine(url)
    try:
        with engine.begin() as conn:
            if "loose" in key:
                if not conn.scalar(text("SELECT to_regcollation('\"und-x-icu\"')")):
                    pytest.skip("this server was built without ICU")
                conn.execute(
                    text(
                        "CREATE COLLATION loose"
                        " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
                    )
                )
            if "citext" in key:
                available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'"
                if not conn.scalar(text(available)):
                    pytest.skip("this server has no citext")
                conn.execute(text("CREATE EXTENSION citext"))
            conn.execute(text(f"CREATE TABLE thing (id bigint PRIMARY KEY, {key})"))
        with engine.begin() as conn, pytest.raises(IndexDefinitionError, match=problem):
            index.create(conn)
    finally:
        engine.dispose()
        databases.drop(url)
