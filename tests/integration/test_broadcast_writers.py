"""Several writers of broadcast tables, and what stands in their way: all copies stay equal."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Table, delete, func, insert, select, text, union_all, update
from sqlalchemy.dialects.postgresql import insert as upsert

from datapatterns.errors import (
    AbortedTransactionError,
    BroadcastWriteError,
    CopiesDifferError,
    IsolationLevelError,
    ShardListChangedError,
    ShardUnavailableError,
)
from datapatterns.failpoints import armed
from datapatterns.sharding import ShardCluster
from datapatterns.sharding.broadcasting.copies import lock_copy
from datapatterns.sharding.broadcasting.images import TableShape, shape_of
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sharding.sessions import broadcast_writing
from tests.fixtures.atomic import needs_prepared_transactions
from tests.fixtures.blocking import until_waiting
from tests.fixtures.broadcast_model import (
    Cart,
    Country,
    Rate,
    broadcast_shop,
    copies,
    families,
    family_on_each,
    the_copy,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with broadcast_shop(shard_urls[:3]) as cluster:
        with cluster.session() as session, session.begin():
            session.add_all([Country(code="de", name="ü"), Country(code="fr")])
        yield cluster
        assert all(engine.pool.checkedout() == 0 for engine in cluster.engines.values())  # type: ignore[attr-defined]


def write(cluster: ShardCluster, statement: Any) -> None:  # noqa: ANN401 -- any statement
    with cluster.session() as session, session.begin():
        session.execute(statement)


def interleaved(cluster: ShardCluster, *, until: Callable[[], None] | None) -> None:
    """One inserts a row and has committed on the first shard; another deletes it meanwhile."""
    decided, settle = Event(), Event()

    def wait() -> None:
        decided.set()
        assert settle.wait(60)

    with ThreadPoolExecutor(2) as pool:
        with armed("atomic.decided", wait):
            inserting = pool.submit(write, cluster, insert(Country).values(code="xx"))
            assert decided.wait(60)
        deleting = pool.submit(write, cluster, delete(Country).where(Country.code == "xx"))
        try:
            deleting.result(timeout=60) if until is None else until()
        finally:
            settle.set()
        inserting.result(timeout=60)
        deleting.result(timeout=60)


def test_the_next_writer_waits_until_every_copy_shows_what_the_last_one_wrote(
    cluster: ShardCluster,
) -> None:
    interleaved(cluster, until=lambda: until_waiting(cluster.engines["s1"], 1))

    assert the_copy(cluster, "country") == ["(de,ü,0)", "(fr,,0)"]


def test_with_a_lock_on_the_first_shard_alone_copies_would_differ(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock_first(conn: Connection, table: Table) -> TableShape:
        is_first = conn.engine is cluster.engines["s0"]
        return lock_copy(conn, table) if is_first else shape_of(conn, table)

    monkeypatch.setattr(broadcast_writing, "lock_copy", lock_first)
    interleaved(cluster, until=None)

    assert not cluster.verify_broadcast(Country).equal
    cluster.repair_broadcast(Country, source="s0")


def test_writers_of_one_row_lose_no_update(cluster: ShardCluster) -> None:
    def visit(_: int) -> None:
        for _ in range(5):
            write(cluster, update(Country).values(visits=Country.visits + 1))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(visit, range(3)))

    assert the_copy(cluster, "country") == ["(de,ü,15)", "(fr,,15)"]


def test_a_row_that_is_locked_to_be_changed_is_locked_for_everybody(cluster: ShardCluster) -> None:
    def visit(_: int) -> None:
        for _ in range(3):
            with cluster.session() as session, session.begin():
                country = session.get_one(Country, "de", with_for_update=True)
                country.visits += 1

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(visit, range(3)))

    assert the_copy(cluster, "country")[0] == "(de,ü,9)"


def test_a_lock_beside_sharded_rows_must_say_whose(cluster: ShardCluster) -> None:
    one, *_ = family_on_each(cluster)
    joined = select(Cart).join(Country).where(Cart.family_id == one)

    with cluster.session() as session:
        with pytest.raises(BroadcastWriteError, match="of="):
            session.execute(joined.with_for_update())
        assert session.scalars(joined.with_for_update(of=Cart)).all() == []
        assert session.scalars(joined.with_for_update(read=True)).all() == []
        locked = select(Country.code).with_for_update()
        statements: list[Any] = [
            select(locked.cte().c.code),
            union_all(locked, select(Country.name)),
        ]
        for inside in statements:
            with pytest.raises(BroadcastWriteError, match="of its own"):
                session.execute(inside)


def test_an_upsert_reaches_every_copy_also_where_it_finds_another_row(
    cluster: ShardCluster,
) -> None:
    with cluster.session() as session, session.begin():
        session.add(Rate(id=1, note="here"))
    statement = upsert(Rate).values(id=7, note="here")
    raised = statement.on_conflict_do_update(index_elements=["note"], set_={"percent": 3})

    write(cluster, raised)
    write(cluster, statement.on_conflict_do_nothing())
    write(cluster, upsert(Country).values(code="de").on_conflict_do_nothing())
    with pytest.raises(BroadcastWriteError, match="primary key"):
        write(cluster, statement.on_conflict_do_update(index_elements=["note"], set_={"id": 9}))

    (row,) = the_copy(cluster, "rate")
    assert row.startswith("(1,,3.00,here,6.00,")


def test_what_is_to_be_returned_is_returned(cluster: ShardCluster) -> None:
    rows = [{"note": note} for note in "cab"]
    with cluster.session() as session, session.begin():
        ordered = insert(Rate).returning(Rate, sort_by_parameter_order=True)
        rates = session.scalars(ordered, rows).all()
        raised = update(Rate).where(Rate.note != "c").values(percent=1).returning(Rate.note)
        changed = session.scalars(raised).all()
        gone = session.scalars(delete(Rate).where(Rate.note == "a").returning(Rate.id)).all()
        notes = [rate.note for rate in rates if rate.note != "a"]
        single = session.execute(insert(Rate.__table__).values(note="z"))  # type: ignore[arg-type]
        assert single.inserted_primary_key == (4,)  # type: ignore[attr-defined]

    assert notes == ["c", "b"]
    assert sorted(map(str, changed)) == ["a", "b"]
    assert gone == [2]
    assert len(the_copy(cluster, "rate")) == 3


def test_rows_are_changed_in_bulk_by_their_primary_keys(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.execute(update(Country), [{"code": "de", "visits": 2}, {"code": "fr", "visits": 3}])

    assert the_copy(cluster, "country") == ["(de,ü,2)", "(fr,,3)"]


def test_many_rows_are_inserted_at_once(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.execute(insert(Country), [{"code": f"c{n}", "name": "😀"} for n in range(2_500)])

    assert len(the_copy(cluster, "country")) == 2_502


def test_types_that_python_knows_nothing_of_are_copied_as_they_are(cluster: ShardCluster) -> None:
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            conn.execute(
                text(
                    "ALTER TABLE country ADD since date DEFAULT 'infinity',"
                    " ADD every interval DEFAULT '1 month 2 days',"
                    " ADD raw json DEFAULT '{\"a\" : 1}'"
                )
            )

    write(cluster, insert(Country).values(code="es"))

    assert the_copy(cluster, "country")[1] == '(es,,0,infinity,"1 mon 2 days","{""a"" : 1}")'


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (update(Country).where(func.random() < 0.5).values(visits=1), "WHERE"),
        (update(Country).values(visits=select(func.max(Cart.id)).scalar_subquery()), "cart"),
        (update(Country).where(Country.code == "de").values(code="dd"), "primary key"),
        (insert(Country).from_select(["code"], select(Cart.country_code)), "cart"),
    ],
)  # fmt: skip
def test_what_would_differ_is_refused(
    cluster: ShardCluster,
    statement: Any,  # noqa: ANN401
    reason: str,
) -> None:
    before = the_copy(cluster, "country")

    def often() -> None:
        for _ in range(30):  # chance may choose the same rows twice
            with cluster.session() as session:
                session.execute(statement)

    with pytest.raises(BroadcastWriteError, match=reason):
        often()

    assert the_copy(cluster, "country") == before


def test_an_object_keeps_its_primary_key(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        session.get_one(Country, "de").code = "dd"
        with pytest.raises(BroadcastWriteError, match="primary key"):
            session.commit()


def test_half_a_write_cannot_be_committed_even_if_its_error_is_caught(
    cluster: ShardCluster,
) -> None:
    with cluster.engines["s1"].begin() as conn:
        conn.execute(text("CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql"
                          " AS 'BEGIN NEW.visits := 9; RETURN NEW; END'"))  # fmt: skip
        conn.execute(text("CREATE TRIGGER other BEFORE INSERT ON country FOR EACH ROW"
                          " EXECUTE FUNCTION other()"))  # fmt: skip
    before = copies(cluster, "country")

    with cluster.session() as session:
        with suppress(CopiesDifferError):
            session.execute(insert(Country).values(code="es"))
        with pytest.raises(AbortedTransactionError):
            session.commit()

    with cluster.session() as session:
        with suppress(CopiesDifferError), session.begin_nested():
            session.execute(insert(Country).values(code="es"))
        session.commit()

    assert copies(cluster, "country") == before


def test_only_read_committed_sees_what_was_written_before_the_lock(shard_urls: list[URL]) -> None:
    options = {"isolation_level": "REPEATABLE READ"}
    with (
        broadcast_shop(shard_urls[:2], engine_options=options) as cluster,
        cluster.session() as session,
        pytest.raises(IsolationLevelError),
    ):
        session.execute(insert(Country).values(code="es"))


def test_columns_must_be_the_same_on_every_shard(cluster: ShardCluster) -> None:
    with cluster.engines["s2"].begin() as conn:
        conn.execute(text("ALTER TABLE country ADD extra text"))

    with pytest.raises(CopiesDifferError, match="extra"):
        write(cluster, insert(Country).values(code="es"))

    assert all(len(rows) == 2 for rows in copies(cluster, "country").values())


def test_without_one_of_the_shards_nothing_is_written(cluster: ShardCluster) -> None:
    before = the_copy(cluster, "country")
    cluster.engines["s2"].dispose()
    allow_connections(cluster, allowed=False)

    with cluster.session() as session:
        session.add(Country(code="es"))
        with pytest.raises(ShardUnavailableError, match="s2"):
            session.commit()

    allow_connections(cluster, allowed=True)
    assert the_copy(cluster, "country") == before


def allow_connections(cluster: ShardCluster, *, allowed: bool) -> None:
    name = cluster.engines["s2"].url.database
    with cluster.engines["s0"].connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        conn.exec_driver_sql(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {allowed}')


def test_a_shard_that_has_gone_is_noticed_under_the_lock(cluster: ShardCluster) -> None:
    listed = sharding_tables("datapatterns").shard
    write(cluster, insert(Country).values(code="es"))
    with cluster._control.begin() as conn:  # noqa: SLF001 -- what removing a shard does
        conn.execute(text("SET LOCAL session_replication_role = 'replica'"))  # past foreign keys
        conn.execute(delete(listed).where(listed.c.shard_id == "s2"))

    with pytest.raises(ShardListChangedError):
        write(cluster, insert(Country).values(code="it"))
    write(cluster, insert(Country).values(code="it"))

    found = copies(cluster, "country")
    assert [len(found[shard]) for shard in ("s0", "s1", "s2")] == [4, 4, 3]


def test_a_sharded_write_stays_on_one_shard(cluster: ShardCluster) -> None:
    one, other, _ = family_on_each(cluster)

    with cluster.session() as session, session.begin():
        session.add(Country(code="es"))
        session.flush()
        session.add(Cart(family_id=one, id=1, country_code="es"))

    with cluster.session() as session, session.begin():
        session.execute(update(Country).values(visits=1))
        session.execute(update(Cart).where(Cart.family_id == one).values(cents=1))

    assert cluster.router.map_of(families).shard_of(other) == "s1"
    assert len(the_copy(cluster, "country")) == 3
