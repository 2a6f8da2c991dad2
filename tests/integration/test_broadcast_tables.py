"""Tables that every shard holds a copy of: read anywhere, written everywhere or nowhere."""

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal

import pytest
from sqlalchemy import URL, delete, func, insert, select, update

from datapatterns.errors import BroadcastWriteError, UnmergeableQueryError
from datapatterns.sharding import ShardCluster
from tests.fixtures.atomic import decisions, needs_prepared_transactions, prepared
from tests.fixtures.broadcast_model import (
    Cart,
    Country,
    Rate,
    broadcast_shop,
    families,
    family_on_each,
    the_copy,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with broadcast_shop(shard_urls[:3]) as cluster:
        yield cluster
        assert (prepared(cluster), decisions(cluster)) == ([], [])
        assert all(engine.pool.checkedout() == 0 for engine in cluster.engines.values())  # type: ignore[attr-defined]


@pytest.fixture
def filled(cluster: ShardCluster) -> ShardCluster:
    """Two countries, and a cart of one of them on each shard."""
    with cluster.session(atomic=True) as session, session.begin():
        session.add_all([Country(code="de", name="Deutschland"), Country(code="fr")])
        for family in family_on_each(cluster):
            session.add(Cart(family_id=family, id=1, country_code="de", cents=family))
    return cluster


def test_objects_are_written_to_every_shard(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.add_all([Country(code="de", name="Dütschland 😀"), Country(code="fr")])

    assert the_copy(cluster, "country") == ['(de,"Dütschland 😀",0)', "(fr,,0)"]


def test_what_a_server_computes_is_the_same_everywhere(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.add(Country(code="de"))
        rates = [Rate(percent=Decimal("1.50"), extra={"ü": [1]}), Rate(country_code="de")]
        session.add_all(rates)
        session.flush()
        rates[0].note = "changed"
        assert [rate.id for rate in rates] == [1, 2]

    assert len(the_copy(cluster, "rate")) == 2


def test_an_object_is_changed_and_deleted_everywhere(filled: ShardCluster) -> None:
    with filled.session() as session, session.begin():
        country = session.get_one(Country, "de")
        country.visits = Country.visits + 1
        session.delete(session.get_one(Country, "fr"))

    assert the_copy(filled, "country") == ["(de,Deutschland,1)"]


def test_statements_are_executed_everywhere(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.execute(insert(Country), [{"code": code} for code in ("de", "fr", "it")])
        session.execute(insert(Rate), [{"note": None}, {"note": "x"}])
        session.execute(insert(Country.__table__).values(code="es", visits=7))  # type: ignore[arg-type]
        changed = session.execute(
            update(Country).where(Country.code < "f").values(visits=func.random() * 0 + 3)
        )
        gone = session.execute(delete(Country).where(Country.code == "it"))
        assert (changed.rowcount, gone.rowcount) == (2, 1)  # type: ignore[attr-defined]

    assert the_copy(cluster, "country") == ["(de,,3)", "(es,,3)", "(fr,,0)"]
    assert len(the_copy(cluster, "rate")) == 2


def test_a_broadcast_table_is_read_where_its_rows_are_joined(filled: ShardCluster) -> None:
    one, *_ = family_on_each(filled)
    joined = select(Cart.cents, Country.name).join(Country).order_by(Cart.cents)

    with filled.session() as session:
        routed = session.execute(joined.where(Cart.family_id == one)).all()
        everywhere = session.execute(joined.execution_options(scatter=True)).all()
        alone = session.execute(select(func.count()).select_from(Country)).scalar_one()
        nested = select(Cart.cents).where(
            Cart.family_id == one,
            Cart.country_code.in_(select(Country.code).where(Country.name.is_not(None))),
        )
        within = session.scalars(nested).all()

    assert routed == [(one, "Deutschland")]
    assert len(everywhere) == 3
    assert alone == 2
    assert within == [one]


def test_the_copy_of_one_shard_is_read_if_that_is_named(filled: ShardCluster) -> None:
    with filled.session() as session:
        whole = set(session.scalars(select(Country.code)))
        assert whole
        for shard in filled.engines:
            for statement in (
                select(Country.code),
                select(select(Country.code).subquery().c.code),
                select(Country.code).join(Cart, isouter=True).distinct(),
            ):
                one = statement.execution_options(shard=shard)
                assert set(session.scalars(one)) == whole


def test_an_outer_join_that_keeps_broadcast_rows_is_not_merged(filled: ShardCluster) -> None:
    kept = select(Country.code, Cart.cents).join_from(Country, Cart, isouter=True)
    turned = select(Country.code, Cart.cents).join_from(Cart, Country, isouter=True)
    one, *_ = family_on_each(filled)
    of_one = (Cart.country_code == Country.code) & (Cart.family_id == one)
    routed = select(Country.code, Cart.cents).join_from(Country, Cart, of_one, isouter=True)

    with filled.session(scatter=True) as session:
        with pytest.raises(UnmergeableQueryError, match="keeps the rows of a broadcast table"):
            session.execute(kept)
        assert len(session.execute(turned).all()) == 3
        assert sorted(session.execute(routed).all()) == [("de", one), ("fr", None)]


def test_rows_may_refer_to_broadcast_rows_of_the_same_flush(cluster: ShardCluster) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        country = Country(code="de")
        for family in family_on_each(cluster):
            session.add(Cart(family_id=family, id=1, country=country))

    assert the_copy(cluster, "country") == ["(de,,0)"]


def test_a_savepoint_undoes_a_write_everywhere(filled: ShardCluster) -> None:
    with filled.session() as session, session.begin():
        with suppress(LookupError), session.begin_nested():
            session.execute(update(Country).values(visits=9))
            session.flush()
            raise LookupError
        session.add(Country(code="it"))

    assert the_copy(filled, "country") == ["(de,Deutschland,0)", "(fr,,0)", "(it,,0)"]


def test_one_copy_alone_is_not_written(filled: ShardCluster) -> None:
    one, *_ = family_on_each(filled)

    with filled.on(families, family_id=one) as pinned:
        assert pinned.get_one(Country, "de").name == "Deutschland"
        pinned.add(Country(code="it"))
        with pytest.raises(BroadcastWriteError, match="session"):
            pinned.commit()
    with (
        filled.on(families, family_id=one) as pinned,
        pytest.raises(BroadcastWriteError),
    ):
        pinned.execute(update(Country).values(visits=1))
    with (
        filled.connect(families, family_id=one) as conn,
        pytest.raises(BroadcastWriteError),
    ):
        conn.execute(delete(Country))

    assert len(the_copy(filled, "country")) == 2
