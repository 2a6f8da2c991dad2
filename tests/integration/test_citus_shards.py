"""A coordinator of Citus as a shard: what it is sent, in which order, and what is refused.

A PostgreSQL server stands for it. Where ours would let pass what Citus refuses, a test looks at the
statements; foreign keys are enforced on it as they are on the nodes of Citus.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from re import search

import pytest
from sqlalchemy import URL, create_engine, delete, event, func, make_url, select, text, update

from datapatterns.errors import (
    CitusTransactionError,
    IsolationLevelError,
    MoveBlockedError,
    MoveMismatchError,
    MoveRefusedError,
    StaleShardMapError,
)
from datapatterns.migrations import Migrations
from datapatterns.sharding import CitusShard, MoveProgress, ShardCluster
from datapatterns.sharding.citus import receiving
from datapatterns.sharding.moving import cutting
from tests.fixtures.citus_stub import distribute
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.shard_model import Base, Basket, Line, create_tables, households

pytestmark = pytest.mark.postgres

BUCKET = 5
KEY = keys_in(BUCKET, 1)[0]


@contextmanager
def grown(
    urls: list[URL],
    *,
    citus: tuple[str, ...] = ("big",),
    level: str | None = None,
    believe: Callable[[str | URL, str], None] = distribute,
) -> Iterator[ShardCluster]:
    """A cluster of a plain shard with all buckets, to which coordinators have been added."""
    for url in urls[: 1 + len(citus)]:
        create_tables(url)
    plain = {"s0": urls[0]}
    options = {} if level is None else {"isolation_level": level}
    with ShardCluster(control=urls[0], shards=plain, groups=[households]) as before:
        before.create_map()
    coordinators = {name: CitusShard(url) for name, url in zip(citus, urls[1:], strict=False)}
    with ShardCluster(
        control=urls[0],
        shards={**plain, **coordinators},
        groups=[households],
        engine_options=options,
    ) as cluster:
        for name in citus:
            believe(coordinators[name].coordinator, cluster.citus_ddl())
            cluster.add_shard(name)
        yield cluster


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with grown(shard_urls) as cluster:
        put(cluster, KEY, lines=3)
        put(cluster, KEY + 1, lines=2)
        yield cluster


def run_on_citus(url: str | URL, ddl: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        for line in ddl.splitlines():
            conn.exec_driver_sql(line, execution_options={"no_parameters": True})
    engine.dispose()


@contextmanager
def sent_to(cluster: ShardCluster, shard: str) -> Iterator[list[str]]:
    """What statements about the tables of the shop are sent to a shard."""
    found: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        found.append(" ".join(statement.split()))

    event.listen(cluster.engines[shard], "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(cluster.engines[shard], "before_cursor_execute", note)


def move(cluster: ShardCluster, to: str = "big") -> None:
    cluster.move(households, BUCKET, to=to, clean_after_seconds=0)


def while_copying(cluster: ShardCluster, change: Callable[[], None]) -> None:
    """Move the bucket; when it is copied, let ``change`` happen on the source once."""
    done: list[object] = []

    def told(progress: MoveProgress) -> None:
        if progress.move.state == "catching_up" and not done:
            done.append(change)
            change()

    cluster.move(households, BUCKET, to="big", clean_after_seconds=0, progress=told)
    assert done


def test_a_bucket_comes_to_a_coordinator_and_the_same_sessions_run_on_it(
    cluster: ShardCluster,
) -> None:
    move(cluster)

    assert states_of(cluster, BUCKET) == {"s0": "cleaned", "big": "owned"}
    assert (bucket_rows(cluster, "s0", BUCKET), bucket_rows(cluster, "big", BUCKET)) == (
        (0, 0),
        (1, 3),
    )
    with cluster.session() as session, session.begin():
        basket = session.get_one(Basket, (KEY, 1))
        assert basket.store == "Ünïcode \\ 'x'"
        basket.cents = 7
        session.execute(update(Line).where(Line.household_id == KEY).values(quantity=2))
    with cluster.session(scatter=True) as session:
        assert session.scalar(select(func.sum(Line.quantity))) == 8
        assert session.scalars(select(Basket.cents).order_by(Basket.household_id)).all() == [
            7,
            None,
        ]


def test_no_guard_is_part_of_a_query_that_citus_would_send_on(cluster: ShardCluster) -> None:
    move(cluster)
    with sent_to(cluster, "big") as sent:
        with cluster.session(scatter=True) as session:
            session.execute(select(Basket).where(Basket.household_id == KEY)).all()
        with cluster.session() as session:
            session.get_one(Basket, (KEY, 1))
        with cluster.session(scatter=True) as session:
            session.execute(select(Basket.id).order_by(Basket.id)).all()
    queries = [each for each in sent if search(r"FROM (public\.)?basket", each)]
    assert len(queries) == 3
    assert not [each for each in queries if search("assert_|claim_|refuse_", each)]
    claims = [i for i, each in enumerate(sent) if "claim_" in each]
    first = [i for i, each in enumerate(sent) if each in queries]
    assert claims[0] < first[0] < claims[1] < first[1] < claims[2] < first[2]


def test_rows_go_after_those_that_refer_to_them_and_come_before(cluster: ShardCluster) -> None:
    with sent_to(cluster, "big") as sent:
        move(cluster)

    deleted = [
        found[1] for each in sent if (found := search(r"^DELETE FROM \"public\".\"(\w+)\"", each))
    ]
    assert deleted == ["line", "basket"]
    assert not [each for each in sent if "session_replication_role" in each]
    assert not [each for each in sent if "TRIGGER" in each or "ctid" in each]
    assert not [each for each in sent if "LOCK TABLE" in each]


def test_parents_change_in_place_so_that_their_children_stay(cluster: ShardCluster) -> None:
    with cluster.engines["big"].begin() as conn:  # as an application may have declared it
        conn.execute(text("ALTER TABLE line DROP CONSTRAINT line_household_id_basket_id_fkey"))
        conn.execute(
            text("ALTER TABLE line ADD FOREIGN KEY (household_id, basket_id) REFERENCES basket")
        )

    def change() -> None:
        with cluster.session() as session, session.begin():
            session.get_one(Basket, (KEY, 1)).cents = 9
            put(cluster, KEY, basket=2, lines=2)

    while_copying(cluster, change)

    assert bucket_rows(cluster, "big", BUCKET) == (2, 5)
    with cluster.session() as session:
        assert session.get_one(Basket, (KEY, 1)).cents == 9


def test_children_that_found_another_parent_outlive_the_old_one(cluster: ShardCluster) -> None:
    put(cluster, KEY, basket=2, lines=0)

    def change() -> None:
        with cluster.session() as session, session.begin():
            session.execute(
                update(Line)
                .where(Line.household_id == KEY, Line.basket_id == 1, Line.number == 0)
                .values(basket_id=2)
            )
            session.execute(delete(Line).where(Line.household_id == KEY, Line.basket_id == 1))
            session.execute(delete(Basket).where(Basket.household_id == KEY, Basket.id == 1))

    while_copying(cluster, change)

    assert bucket_rows(cluster, "big", BUCKET) == (1, 1)


def test_a_move_that_is_aborted_leaves_nothing_on_the_coordinator(cluster: ShardCluster) -> None:
    class StoppedError(Exception):
        pass

    def stop(progress: MoveProgress) -> None:
        if progress.move.state == "catching_up":
            raise StoppedError

    with pytest.raises(StoppedError):
        cluster.move(households, BUCKET, to="big", progress=stop)
    assert bucket_rows(cluster, "big", BUCKET) == (1, 3)
    with sent_to(cluster, "big") as sent:
        cluster.abort_move(households, BUCKET)

    assert bucket_rows(cluster, "big", BUCKET) == (0, 0)
    assert states_of(cluster, BUCKET) == {"s0": "owned", "big": "cleaned"}
    # The place of a row is another row's on another node.
    assert not [each for each in sent if "ctid" in each]
    move(cluster)
    assert bucket_rows(cluster, "big", BUCKET) == (1, 3)


def test_nothing_leaves_a_coordinator(cluster: ShardCluster) -> None:
    move(cluster)

    with pytest.raises(MoveRefusedError, match="no triggers to note what changes"):
        cluster.move(households, BUCKET, to="s0")
    with pytest.raises(MoveRefusedError, match="no triggers to note what changes"):
        cluster.drain("big")

    assert cluster.moves() == []
    assert states_of(cluster, BUCKET) == {"s0": "cleaned", "big": "owned"}
    with cluster.engines["s0"].connect() as conn:  # the control database
        known = text("SELECT state FROM datapatterns.shard WHERE shard_id = 'big'")
        assert conn.scalar(known) == "active"


def test_foreign_keys_that_no_order_satisfies_are_refused(cluster: ShardCluster) -> None:
    to_itself = "ADD FOREIGN KEY (household_id, above) REFERENCES basket"
    back = "ADD FOREIGN KEY (household_id, line, number) REFERENCES line"
    to_other = "ADD FOREIGN KEY (household_id, code) REFERENCES basket (household_id, code)"
    refused = {
        f"ALTER TABLE basket ADD above int, {to_itself}": "refers to itself",
        f"ALTER TABLE basket DROP above, ADD line int, ADD number int, {back}": "in a circle",
        "ALTER TABLE basket DROP line; CREATE UNIQUE INDEX other ON basket (household_id, code);"
        f'ALTER TABLE line ADD code text COLLATE "C", {to_other}': "than the primary key",
    }
    for statement, match in refused.items():
        for engine in cluster.engines.values():
            with engine.begin() as conn:
                conn.exec_driver_sql(statement)

        with pytest.raises(MoveRefusedError, match=match):
            move(cluster)

    assert states_of(cluster, BUCKET) == {"s0": "owned"}
    assert bucket_rows(cluster, "big", BUCKET) == (0, 0)


def test_a_coordinator_that_is_not_set_up_gets_no_bucket(cluster: ShardCluster) -> None:
    wrong = {
        "SELECT create_reference_table('datapatterns.bucket')": "not the coordinator's alone",
        "DELETE FROM called WHERE place IN ('line', 'datapatterns.bucket')": "not distributed by",
        "DROP VIEW citus_tables": "no coordinator of Citus",
    }
    for statement, match in wrong.items():
        with cluster.engines["big"].begin() as conn:
            conn.exec_driver_sql(statement)

        with pytest.raises(MoveRefusedError, match=match):
            move(cluster)

    assert states_of(cluster, BUCKET) == {"s0": "owned"}


def test_a_unique_value_that_changes_rows_meanwhile_stops_the_move(cluster: ShardCluster) -> None:
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            conn.exec_driver_sql("CREATE UNIQUE INDEX code ON basket (household_id, code)")
    put(cluster, KEY, basket=2)
    with cluster.connect(households, household_id=KEY) as conn, conn.begin():
        conn.execute(text("UPDATE basket SET code = id WHERE household_id = :key"), {"key": KEY})

    def change() -> None:
        with cluster.connect(households, household_id=KEY) as conn, conn.begin():
            for code in ("id + 10", "3 - id"):
                conn.execute(
                    text(f"UPDATE basket SET code = {code} WHERE household_id = {KEY}")  # noqa: S608 -- two constants
                )

    with pytest.raises(MoveRefusedError, match="constraint code on shard big"):
        while_copying(cluster, change)

    assert states_of(cluster, BUCKET) == {"s0": "owned", "big": "cleaned"}
    assert bucket_rows(cluster, "s0", BUCKET) == (2, 3)


def test_rows_that_vanish_from_the_coordinator_stop_the_cut(cluster: ShardCluster) -> None:
    """As those whose node has not committed yet what the coordinator has."""

    def vanish() -> None:
        with cluster.engines["big"].begin() as conn:
            conn.execute(text("DELETE FROM line"))

    with pytest.raises(MoveMismatchError):
        while_copying(cluster, vanish)

    assert states_of(cluster, BUCKET) == {"s0": "owned", "big": "cleaned"}


def test_who_reads_the_whole_coordinator_sees_no_bucket_begin_to_come(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cluster, keys_in(BUCKET + 1, 1)[0])
    cluster.move(households, BUCKET + 1, to="big", clean_after_seconds=0)
    monkeypatch.setattr("datapatterns.sharding.moving.holding.BRIEFLY", "100ms")

    with cluster.session(scatter=True) as session:
        before = session.scalar(select(func.count()).select_from(Basket))
        with pytest.raises(MoveBlockedError):
            move(cluster)
        assert session.scalar(select(func.count()).select_from(Basket)) == before

    cluster.resume_moves(clean_after_seconds=0)
    assert states_of(cluster, BUCKET)["big"] == "owned"


def test_a_snapshot_that_may_be_older_than_the_claim_is_refused(shard_urls: list[URL]) -> None:
    with grown(shard_urls, level="REPEATABLE READ") as cluster:
        put(cluster, KEY, lines=2)
        move(cluster)
        with cluster.session(scatter=True) as session, pytest.raises(IsolationLevelError):
            session.scalar(select(func.count()).select_from(Basket))
        with cluster.session() as session:
            assert session.get_one(Basket, (KEY, 1)).lines


def test_the_coordinator_decides_when_a_transaction_writes_to_others_too(
    cluster: ShardCluster,
) -> None:
    move(cluster)
    with (
        sent_to(cluster, "s0") as plain,
        sent_to(cluster, "big") as big,
        cluster.session(atomic=True) as session,
        session.begin(),
    ):
        for key in (KEY + 1, KEY):
            session.get_one(Basket, (key, 1)).cents = 5

    decided = [each for each in big if "transaction_decision" in each]
    assert decided
    assert not [each for each in plain if "INSERT INTO datapatterns.transaction_decision" in each]
    with cluster.session(scatter=True) as session:
        assert session.scalars(select(Basket.cents)).all() == [5, 5]


def test_two_coordinators_take_part_in_no_transaction(shard_urls: list[URL]) -> None:
    other = keys_in(BUCKET + 1, 1)[0]
    with grown(shard_urls, citus=("big", "huge")) as cluster:
        put(cluster, KEY)
        put(cluster, other)
        move(cluster)
        cluster.move(households, BUCKET + 1, to="huge", clean_after_seconds=0)

        with cluster.session(atomic=True) as session:
            for key in (KEY, other):
                session.get_one(Basket, (key, 1)).cents = 5
            with pytest.raises(CitusTransactionError, match="big, huge"):
                session.commit()

        with cluster.session(scatter=True) as session:
            assert session.scalars(select(Basket.cents)).all() == [None, None]


def test_what_goes_on_the_nodes_before_the_cut_is_found_in_it(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where others are compared before, and in the cut only what was seen to change."""

    def vanish(name: str) -> None:
        if name == "move.drained":
            with cluster.engines["big"].begin() as conn:
                conn.execute(text("DELETE FROM line"))

    monkeypatch.setattr(cutting, "ROWS_COMPARED_AT_ONCE", 0)
    monkeypatch.setattr(cutting, "failpoint", vanish)

    with pytest.raises(MoveMismatchError):
        move(cluster)

    assert states_of(cluster, BUCKET) == {"s0": "owned", "big": "cleaned"}


def test_a_coordinator_answers_only_for_what_it_owns(cluster: ShardCluster) -> None:
    move(cluster)
    mine = select(Basket.id).where(Basket.household_id == KEY)
    every = select(func.count()).select_from(Basket)
    with cluster.session(scatter=True) as session:
        assert (session.scalar(mine), session.scalar(every)) == (1, 2)
    with cluster.engines["big"].begin() as conn:  # as after a restore
        conn.execute(text("UPDATE datapatterns.bucket SET state = 'incoming'"))

    for statement, options in (
        (mine, {}),
        (every, {}),
        (every, {"shard": "big"}),
        (mine.with_for_update(), {}),
    ):
        with cluster.session(scatter=True) as session, pytest.raises(StaleShardMapError):
            session.scalar(statement, execution_options=options)


def test_more_rows_than_one_statement_names_come_and_go(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "KEYS_AT_ONCE", 2)
    monkeypatch.setattr(receiving, "IMAGES_AT_ONCE", 3)
    for basket in range(2, 7):
        put(cluster, KEY, basket=basket, lines=2)

    def change() -> None:
        with cluster.connect(households, household_id=KEY) as conn, conn.begin():
            for statement in (
                "UPDATE basket SET code = E'tab\\t, \\\\N and ''' WHERE household_id = :key",
                "DELETE FROM line WHERE household_id = :key AND basket_id > 3",
                "DELETE FROM basket WHERE household_id = :key AND id > 3",
                "UPDATE line SET quantity = 5 WHERE household_id = :key",
            ):
                conn.execute(text(statement), {"key": KEY})

    while_copying(cluster, change)

    assert bucket_rows(cluster, "big", BUCKET) == (3, 7)
    with cluster.session() as session:
        third = session.get_one(Basket, (KEY, 3))
        assert (third.code, third.cents) == ("tab\t, \\N and '", None)


@pytest.mark.skipif("CITUS_URL" not in os.environ, reason="CITUS_URL names no Citus coordinator")
def test_a_real_citus_takes_buckets_while_they_are_written(shard_urls: list[URL]) -> None:
    url = make_url(os.environ["CITUS_URL"]).set(drivername="postgresql+psycopg")
    Migrations({"citus": url}).upgrade()
    try:
        with grown([shard_urls[0], url], believe=run_on_citus) as cluster:
            put(cluster, KEY, lines=3)
            put(cluster, KEY + 1, lines=2)

            def change() -> None:
                with cluster.session() as session, session.begin():
                    session.get_one(Basket, (KEY, 1)).cents = 9
                    session.execute(delete(Line).where(Line.household_id == KEY, Line.number == 0))

            while_copying(cluster, change)

            assert cluster.check_citus(coordinator=url) == ()
            assert states_of(cluster, BUCKET) == {"s0": "cleaned", "big": "owned"}
            with cluster.session(scatter=True) as session:
                assert session.scalar(select(func.count()).select_from(Line)) == 4
            with cluster.session(atomic=True) as session, session.begin():
                for key in (KEY + 1, KEY):
                    session.get_one(Basket, (key, 1)).cents = 5
            with cluster.session(scatter=True) as session:
                assert session.scalars(select(Basket.cents)).all() == [5, 5]
    finally:
        engine = create_engine(url)
        Base.metadata.drop_all(engine)
        engine.dispose()
