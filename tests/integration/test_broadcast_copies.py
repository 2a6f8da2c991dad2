"""Copies of broadcast tables: compared, mended, and given to a new shard."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, insert, select, text

from datapatterns.errors import CopiesDifferError, SettingsError, ShardedTableError
from datapatterns.sharding import CopyDifference, ShardCluster
from datapatterns.sharding.broadcasting.copying import copied_to
from datapatterns.sharding.moving import joining
from datapatterns.sharding.schema import sharding_tables
from datapatterns.testing import Databases
from tests.fixtures.atomic import Died, needs_prepared_transactions
from tests.fixtures.broadcast_model import (
    Base,
    Cart,
    Country,
    Rate,
    broadcast_shop,
    the_copy,
)
from tests.fixtures.shard_model import named

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    """Countries and rates on three shards, and past the library, others on two of them."""
    needs_prepared_transactions(shard_urls[0])
    with broadcast_shop(shard_urls[:3]) as cluster:
        with cluster.session() as session, session.begin():
            session.add_all([Country(code=code, name="ü") for code in ("de", "fr", "it")])
            session.execute(insert(Rate), [{"note": None}, {"note": "x"}])
        yield cluster


def past_the_library(cluster: ShardCluster, shard: str, statement: str) -> None:
    with cluster.engines[shard].begin() as conn:
        conn.execute(text(statement))


def breaks(cluster: ShardCluster) -> None:
    past_the_library(cluster, "s1", "DELETE FROM country WHERE code = 'de'")
    past_the_library(cluster, "s1", "UPDATE country SET name = NULL WHERE code = 'it'")
    past_the_library(cluster, "s2", "INSERT INTO country (code) VALUES ('es')")


def test_equal_copies_are_found_equal(cluster: ShardCluster) -> None:
    found = cluster.verify_broadcast(Country)

    assert (found.equal, found.source, found.rows) == (True, "s0", {"s0": 3, "s1": 3, "s2": 3})


def test_what_sql_text_has_changed_is_found_by_its_key(cluster: ShardCluster) -> None:
    breaks(cluster)

    found = cluster.verify_broadcast(Country.__table__, source="s0")  # type: ignore[arg-type]

    assert found.differences == {
        "s1": CopyDifference(missing=(("de",),), surplus=(), changed=(("it",),)),
        "s2": CopyDifference(missing=(), surplus=(("es",),), changed=()),
    }


def test_copies_are_mended_from_the_one_that_is_right(cluster: ShardCluster) -> None:
    breaks(cluster)

    planned = cluster.repair_broadcast(Country, source="s1", dry_run=True)
    assert cluster.verify_broadcast(Country, source="s1") == planned
    assert cluster.repair_broadcast(Country, source="s1") == planned

    assert cluster.verify_broadcast(Country).equal
    assert the_copy(cluster, "country") == ["(fr,ü,0)", "(it,,0)"]


def test_a_write_that_meets_a_broken_copy_is_refused(cluster: ShardCluster) -> None:
    past_the_library(cluster, "s1", "INSERT INTO rate (id, note) VALUES (50, 'taken')")

    with cluster.session() as session:
        session.add(Rate(note="taken"))
        with pytest.raises(CopiesDifferError, match="s1"):
            session.commit()

    assert not cluster.verify_broadcast(Rate).equal


def test_only_broadcast_tables_and_shards_with_copies_can_be_compared(
    cluster: ShardCluster,
) -> None:
    with pytest.raises(ShardedTableError, match="Broadcast"):
        cluster.verify_broadcast(Cart)
    with pytest.raises(SettingsError, match="s7"):
        cluster.verify_broadcast(Country, source="s7")


def new_shard(url: URL) -> Engine:
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    return engine


def test_a_new_shard_gets_all_rows_and_goes_on_with_the_numbers(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    engine = new_shard(shard_urls[3])
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO country (code) VALUES ('left from before')"))

    for _ in range(2):  # it may be repeated
        with copied_to(cluster._access, "s3", engine):  # noqa: SLF001 -- what add_shard does
            pass

    with engine.connect() as conn:
        assert conn.scalars(select(Country.code).order_by(Country.code)).all() == ["de", "fr", "it"]
        assert conn.scalar(insert(Rate).returning(Rate.id)) == 3
        copied = conn.scalars(text("SELECT rate::text FROM rate WHERE id < 3 ORDER BY id")).all()
    assert copied == the_copy(cluster, "rate")
    engine.dispose()


def test_a_writer_waits_for_a_copy_and_then_knows_the_new_shard(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    engine = new_shard(shard_urls[3])
    listed = sharding_tables("datapatterns").shard

    with copied_to(cluster._access, "s3", engine), cluster._control.begin() as conn:  # noqa: SLF001
        conn.execute(insert(listed).values(shard_id="s3"))

    with cluster.session() as session:
        session.add(Country(code="es"))
        with pytest.raises(SettingsError, match="s3"):
            session.commit()
    assert len(the_copy(cluster, "country")) == 3
    engine.dispose()


def test_a_crash_before_the_shard_is_listed_changes_nothing(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    engine = new_shard(shard_urls[3])
    with pytest.raises(Died), copied_to(cluster._access, "s3", engine):  # noqa: SLF001
        raise Died

    with cluster.session() as session, session.begin():
        session.add(Country(code="es"))
    assert len(the_copy(cluster, "country")) == 4
    engine.dispose()


def test_a_shard_is_added_when_it_has_all_copies(
    cluster: ShardCluster, shard_urls: list[URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    new_shard(shard_urls[3]).dispose()
    list_shard = joining.list_shard
    counted: list[int | None] = []

    def look_and_list(*args: Any, **options: Any) -> None:  # noqa: ANN401 -- passed on
        with wider.engines["s3"].connect() as conn:
            counted.append(conn.scalar(text("SELECT count(*) FROM country")))
        list_shard(*args, **options)

    monkeypatch.setattr(joining, "list_shard", look_and_list)
    urls = named(shard_urls[:4])
    with ShardCluster(control=urls["s0"], shards=urls, groups=cluster.groups) as wider:
        wider.add_shard("s3")
        with wider.session() as session, session.begin():
            session.add(Country(code="es"))
        wider.add_shard("s3", weight=2)  # again

        assert counted == [3, 4]
        assert wider.verify_broadcast(Country).rows == dict.fromkeys(("s0", "s1", "s2", "s3"), 4)


def test_a_shard_is_added_beside_another_that_has_just_been(
    cluster: ShardCluster, shard_urls: list[URL], databases: Databases
) -> None:
    with databases.lend() as last:
        for url in (shard_urls[3], last):
            new_shard(url).dispose()
        urls = named([*shard_urls[:4], last])
        with ShardCluster(control=urls["s0"], shards=urls, groups=cluster.groups) as wider:
            with wider.session() as session, session.begin():
                session.add(Country(code="es"))  # from now on it knows who has copies
            with ShardCluster(control=urls["s0"], shards=urls, groups=cluster.groups) as another:
                another.add_shard("s3")

            wider.add_shard("s4")

            with wider.session() as session, session.begin():
                session.add(Country(code="pt"))
            assert wider.verify_broadcast(Country).rows == dict.fromkeys(sorted(urls), 5)
