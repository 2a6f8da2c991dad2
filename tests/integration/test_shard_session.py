import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Interval,
    Select,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal_column,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased, joinedload, selectinload

from datapatterns.errors import (
    IsolationLevelError,
    MergeLimitError,
    MultiShardWriteError,
    ScatterRefusedError,
    SettingsError,
    ShardKeyChangedError,
    ShardKeyError,
    UnmergeableQueryError,
    UnroutableStatementError,
)
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases, wait_until
from tests.fixtures.shard_model import Basket, Line, Product, households, named, sharded_shop

pytestmark = pytest.mark.postgres

BASKETS = 30


@pytest.fixture(scope="module")
def urls(databases: Databases) -> Iterator[list[URL]]:
    urls = [databases.new() for _ in range(4)]
    yield urls
    for url in urls:
        databases.drop(url)


@pytest.fixture(scope="module")
def shop(urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(urls) as cluster:
        yield cluster


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    """A basket with two lines for each of some households."""
    for engine in shop.engines.values():
        with engine.begin() as conn:
            conn.execute(text("TRUNCATE basket, line, product"))
    rows = [{"household_id": key, "id": 1, "cents": key * 10} for key in range(BASKETS)]
    lines = [
        {"household_id": key, "basket_id": 1, "number": number, "quantity": number}
        for key in range(BASKETS)
        for number in (1, 2)
    ]
    placed = shop.placed(households, rows, key=lambda row: row["household_id"])
    placed_lines = shop.placed(households, lines, key=lambda row: row["household_id"])
    for shard, mine in placed.items():
        with shop.begin_bulk(households, shard) as conn:
            conn.execute(insert(Basket), mine)
            conn.execute(insert(Line), placed_lines[shard])
    return shop


def shard_of(cluster: ShardCluster, key: int) -> str:
    return cluster.router.map_of(households).shard_of(key)


def elsewhere(cluster: ShardCluster, key: int) -> int:
    """A key on another shard."""
    return next(k for k in range(BASKETS) if shard_of(cluster, k) != shard_of(cluster, key))


def together(cluster: ShardCluster, key: int) -> int:
    """Another key on the same shard."""
    return next(
        k for k in range(BASKETS) if k != key and shard_of(cluster, k) == shard_of(cluster, key)
    )


def stored(cluster: ShardCluster, key: int) -> list[tuple[int, int | None]]:
    """The baskets of a household as all shards hold them."""
    found = []
    statement = text("SELECT id, cents FROM basket WHERE household_id = :key ORDER BY id")
    for engine in cluster.engines.values():
        with engine.connect() as conn:
            found += [(row.id, row.cents) for row in conn.execute(statement, {"key": key})]
    return found


# Routing ---------------------------------------------------------------------------------------


def test_an_object_is_found_by_its_primary_key(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        assert [session.get_one(Basket, (key, 1)).cents for key in range(3)] == [0, 10, 20]
        assert session.get(Basket, (999, 1)) is None


def test_relations_are_loaded_from_the_shard_of_their_owner(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        lazily = session.get_one(Basket, (7, 1))
        assert sorted(line.number for line in lazily.lines) == [1, 2]

        eagerly = session.scalars(
            select(Basket).where(Basket.household_id == 8).options(selectinload(Basket.lines))
        ).one()
        assert len(eagerly.lines) == 2

        joined = session.scalars(
            select(Basket).where(Basket.household_id == 9).options(joinedload(Basket.lines))
        )
        assert len(joined.unique().one().lines) == 2


def test_objects_of_all_shards_load_their_relations(cluster: ShardCluster) -> None:
    statement = select(Basket).options(selectinload(Basket.lines)).order_by(Basket.household_id)

    with cluster.session() as session:
        found = session.scalars(statement.execution_options(scatter=True)).all()

        assert [basket.household_id for basket in found] == list(range(BASKETS))
        assert {len(basket.lines) for basket in found} == {2}
        assert found[3] is session.get(Basket, (3, 1))


def test_a_joined_collection_of_all_shards_is_refused(cluster: ShardCluster) -> None:
    statement = select(Basket).options(joinedload(Basket.lines))

    with (
        cluster.session(scatter=True) as session,
        pytest.raises(UnmergeableQueryError, match="sel"),
    ):
        session.scalars(statement).unique().all()


def test_values_may_come_as_parameters(cluster: ShardCluster) -> None:
    statement = select(Basket.cents).where(Basket.household_id == bindparam("key"))

    with cluster.session() as session:
        assert [session.scalar(statement, {"key": key}) for key in (5, 6, 7)] == [50, 60, 70]


def test_a_list_of_keys_is_read_from_their_shards(cluster: ShardCluster) -> None:
    statement = select(Basket.cents).order_by(Basket.cents.desc())

    with cluster.session() as session:
        listed = session.scalars(statement.where(Basket.household_id.in_([3, 1, 2, 999]))).all()
        empty = session.scalars(statement.where(Basket.household_id.in_([]))).all()

    assert (listed, empty) == ([30, 20, 10], [])


def test_statements_of_one_shape_are_routed_by_their_own_values(cluster: ShardCluster) -> None:
    """What was found out about the first must not be taken for the others."""
    other = aliased(Basket)
    shapes: list[Callable[[int], Select[int | None]]] = [
        lambda key: select(Basket.cents).where(Basket.cents > -key, Basket.household_id == key),
        lambda key: select(Basket.cents).where(Basket.household_id.in_([key])),
        lambda key: select(Basket.cents).where(
            tuple_(Basket.id, Basket.household_id).in_([(1, key)])
        ),
        lambda key: select(Basket.cents).where(
            Basket.household_id == other.household_id, other.cents >= 0, other.household_id == key
        ),
        lambda key: select(Basket.cents).where(
            Basket.household_id == key,
            Basket.id.in_(select(Line.basket_id).where(Line.household_id == key)),
        ),
    ]

    with cluster.session() as session:
        for shape in shapes:
            found = [session.scalar(shape(key)) for key in range(1, BASKETS)]
            assert found == [key * 10 for key in range(1, BASKETS)]


def test_aliases_are_told_apart(cluster: ShardCluster) -> None:
    other = aliased(Basket)
    pairs = select(Basket.household_id, other.household_id).where(Basket.household_id == 3)

    with cluster.session() as session:
        with pytest.raises(ScatterRefusedError):
            session.execute(pairs.where(other.id == 1))
        tied = session.execute(pairs.where(other.household_id == Basket.household_id)).all()

    assert tied == [(3, 3)]


def test_a_subquery_must_name_a_key_of_the_same_shard(cluster: ShardCluster) -> None:
    other = aliased(Basket)
    mine = select(Basket.id).where(Basket.household_id == 7)
    asked = select(other.id).where(other.id == 1)

    with cluster.session() as session:
        with pytest.raises(ScatterRefusedError):
            session.scalars(mine.where(asked.where(other.cents >= 0).exists()))
        there = asked.where(other.household_id == elsewhere(cluster, 7))
        with pytest.raises(UnmergeableQueryError, match="subquery"):
            session.scalars(mine.where(there.exists()))
        near = asked.where(other.household_id == together(cluster, 7))
        assert session.scalars(mine.where(near.exists())).all() == [1]


@pytest.mark.parametrize("value", ["3", 3.0])
def test_a_key_is_not_converted(cluster: ShardCluster, value: object) -> None:
    statement = select(Basket).where(Basket.household_id == value)

    with cluster.session() as session, pytest.raises(ShardKeyError, match="where int is needed"):
        session.scalars(statement)


def test_a_key_that_no_bigint_can_hold_is_refused(cluster: ShardCluster) -> None:
    with cluster.session() as session, pytest.raises(ShardKeyError, match="bigint"):
        session.get(Basket, (2**63, 1))


def test_null_equals_no_key(cluster: ShardCluster) -> None:
    statement = select(Basket).where(Basket.household_id == bindparam("key"))

    with cluster.session() as session:
        assert session.scalars(statement, {"key": None}).all() == []


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (select(Product), "nothing was declared about table 'product'"),
        (select(Basket).join(Product, Product.id == Basket.id), "product"),
        (select(1), "no sharded table"),
        (text("SELECT * FROM basket"), "nobody can look into"),
        (select(Basket).where(text("household_id = 3")), "SQL text"),
        (select(literal_column("(SELECT 1)")).where(Basket.household_id == 3), "SQL text"),
        (select(Basket).from_statement(text("SELECT * FROM basket")), "SQL text|look into"),
        (insert(Basket).from_select(["household_id", "id"], select(Basket.id, Basket.id)), "SEL"),
        (
            update(Basket).where(Basket.household_id == 3, Line.number == 1).values(cents=1),
            "columns beside",
        ),
        (
            delete(Basket).where(Basket.household_id == 3, aliased(Basket).id == Basket.id),
            "columns beside",
        ),
    ],
)
def test_what_cannot_be_routed_is_refused_by_name(
    cluster: ShardCluster, statement: object, reason: str
) -> None:
    with cluster.session() as session, pytest.raises(UnroutableStatementError, match=reason):
        session.execute(statement)  # type: ignore[call-overload]  # statements of all kinds


def test_a_session_over_all_shards_has_no_connection_of_its_own(cluster: ShardCluster) -> None:
    with cluster.session() as session, pytest.raises(UnroutableStatementError, match="connect"):
        session.connection()


# Scatter-gather --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "clause"),
    [
        (select(Basket).order_by(cast(Basket.store, Interval)), "ORDER BY a"),
        (select(Basket).ext(distinct_on(Basket.store)), "DISTINCT ON"),
        (select(Basket.cents).order_by(Basket.cents).fetch(2, with_ties=True), "FETCH"),
        (select(Basket.cents).with_for_update(), "FOR UPDATE"),
        (select(Basket, func.row_number().over(order_by=Basket.cents)), "window"),
        (select(func.array_agg(Basket.cents)), "without an order"),
        (select(func.sum(Basket.weight).over(order_by=Basket.cents)), "of Double"),
        (select(func.count()).group_by("cents").select_from(Basket), "GROUP BY a name"),
        (select(func.nextval("s")).select_from(Basket), "nextval"),
        (select(func.now()).select_from(Basket), "now"),
        (select(func.random()).select_from(Basket), "random"),
        (select(Basket.id).where(Basket.cents < select(func.max(Line.number)).scalar_subquery()),
         "subquery"),
        (select(Basket.id).union(select(Line.number)), "UNION"),
        (select(Basket.id).join(Line, Line.basket_id == Basket.id), "join"),
        (select(Basket.id).limit(5).offset(20_000), "OFFSET"),
        (select(Basket.id).limit(Basket.id), "computed LIMIT"),
        (select(Basket.cents, Basket.id, func.count()).group_by(Basket.cents), "GROUP BY"),
        (select(Basket.cents, func.count()).group_by(Basket.cents).order_by(Basket.id),
         "GROUP BY"),
        (select(Basket).distinct().order_by(Basket.id + 1), "ORDER BY beside DISTINCT"),
        (select(func.sum(Basket.weight)), r"sum\(\) of Double|sum\(\) of Float"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_is_refused_by_name(
    cluster: ShardCluster, statement: object, clause: str
) -> None:
    with (
        cluster.session(scatter=True) as session,
        pytest.raises(UnmergeableQueryError, match=clause),
    ):
        session.execute(statement)  # type: ignore[call-overload]  # statements of all kinds


def test_all_shards_are_asked_only_if_that_was_allowed(cluster: ShardCluster) -> None:
    statement = select(func.count()).select_from(Basket)

    with cluster.session() as session:
        with pytest.raises(ScatterRefusedError, match="scatter=True"):
            session.scalar(statement)
        assert session.scalar(statement.execution_options(scatter=True)) == BASKETS
        assert session.scalar(statement, execution_options={"scatter": True}) == BASKETS


def test_what_a_session_wrote_is_in_its_scattered_reads(cluster: ShardCluster) -> None:
    with cluster.session(scatter=True) as session:
        session.add(Basket(household_id=7, id=2, cents=5))

        assert session.scalar(select(func.count()).select_from(Basket)) == BASKETS + 1


def test_groups_by_the_shard_key_are_finished_by_their_shards(cluster: ShardCluster) -> None:
    statement = (
        select(Line.household_id, func.count(Line.number.distinct()), func.array_agg(Line.number))
        .group_by(Line.household_id)
        .having(func.sum(Line.quantity) == 3)
        .order_by(Line.household_id.desc())
        .limit(2)
    )

    with cluster.session(scatter=True) as session:
        found = session.execute(statement).all()

    assert [(key, count, sorted(numbers)) for key, count, numbers in found] == [
        (29, 2, [1, 2]),
        (28, 2, [1, 2]),
    ]


def test_a_join_within_the_key_is_merged(cluster: ShardCluster) -> None:
    statement = (
        select(func.sum(Basket.cents * Line.quantity)).join(Basket.lines).where(Basket.cents < 100)
    )

    with cluster.session(scatter=True) as session:
        assert session.scalar(statement) == sum(key * 10 * 3 for key in range(10))


@pytest.mark.usefixtures("cluster")
def test_more_rows_than_may_be_merged_are_refused(urls: list[URL]) -> None:
    statement = select(Basket.id)

    with (
        ShardCluster(
            control=urls[0], shards=named(urls), groups=[households], merge_rows_max=BASKETS - 1
        ) as narrow,
        narrow.session(scatter=True) as session,
    ):
        with pytest.raises(MergeLimitError, match=f"more than {BASKETS - 1} rows"):
            session.scalars(statement)
        with pytest.raises(MergeLimitError):
            session.scalars(statement.limit(BASKETS))
        assert len(session.scalars(statement.limit(BASKETS - 1)).all()) == BASKETS - 1


# Writing ---------------------------------------------------------------------------------------


def test_objects_are_written_to_the_shard_of_their_key(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.add(Basket(household_id=7, id=2, cents=1, lines=[Line(number=1)]))
        session.get_one(Basket, (7, 1)).cents = 2

    assert stored(cluster, 7) == [(1, 2), (2, 1)]
    with cluster.on(households, household_id=7) as pinned:
        assert pinned.scalar(select(func.count()).select_from(Line)) == 3


def test_a_deleted_object_is_gone(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        basket = session.get_one(Basket, (7, 1))
        for line in list(basket.lines):
            session.delete(line)
        session.delete(basket)

    assert stored(cluster, 7) == []


def test_objects_of_two_shards_are_refused_before_anything_is_sent(cluster: ShardCluster) -> None:
    there = elsewhere(cluster, 7)

    with cluster.session() as session:
        session.add_all([Basket(household_id=7, id=2), Basket(household_id=there, id=2)])
        with pytest.raises(MultiShardWriteError, match="cannot commit together"):
            session.commit()
        assert not session._work.parts._parts  # noqa: SLF001 -- no shard was even asked

    assert len(stored(cluster, 7)) == len(stored(cluster, there)) == 1


def test_a_second_shard_is_refused_after_the_first_was_written(cluster: ShardCluster) -> None:
    there = elsewhere(cluster, 7)

    with cluster.session() as session:
        session.execute(update(Basket).where(Basket.household_id == 7).values(cents=1))
        with pytest.raises(MultiShardWriteError):
            session.execute(update(Basket).where(Basket.household_id == there).values(cents=1))
        session.rollback()
        session.execute(update(Basket).where(Basket.household_id == there).values(cents=1))
        session.commit()

    assert (stored(cluster, 7), stored(cluster, there)) == ([(1, 70)], [(1, 1)])


def test_two_keys_of_one_shard_are_written_together(cluster: ShardCluster) -> None:
    near = together(cluster, 7)

    with cluster.session() as session, session.begin():
        session.add_all([Basket(household_id=7, id=2), Basket(household_id=near, id=2)])

    assert (len(stored(cluster, 7)), len(stored(cluster, near))) == (2, 2)


def test_many_shards_are_read_and_one_is_written(cluster: ShardCluster) -> None:
    with cluster.session(scatter=True) as session, session.begin():
        total = session.scalar(select(func.sum(Basket.cents)))
        session.get_one(Basket, (7, 1)).cents = total

    assert stored(cluster, 7) == [(1, sum(range(BASKETS)) * 10)]


def test_a_write_behind_a_select_is_found_before_the_commit(cluster: ShardCluster) -> None:
    there = elsewhere(cluster, 7)
    # FOR UPDATE counts as a write; so would a function that writes.
    locking = select(Basket).where(Basket.household_id == there).with_for_update()

    with cluster.session() as session:
        session.scalars(locking).one()
        session.add(Basket(household_id=7, id=2))
        with pytest.raises(MultiShardWriteError):
            session.commit()

    assert len(stored(cluster, 7)) == 1


@pytest.mark.parametrize("rows", ["parameters", "values"])
def test_many_rows_are_inserted_at_once(cluster: ShardCluster, rows: str) -> None:
    new = [{"household_id": 7, "id": number, "cents": number} for number in range(2, 5)]

    with cluster.session() as session, session.begin():
        if rows == "parameters":
            session.execute(insert(Basket), new)
        else:
            session.execute(insert(Basket).values(new))

    assert stored(cluster, 7) == [(1, 70), (2, 2), (3, 3), (4, 4)]


def test_rows_of_several_shards_are_not_inserted_at_once(cluster: ShardCluster) -> None:
    new = [{"household_id": key, "id": 2} for key in range(BASKETS)]

    with cluster.session() as session, pytest.raises(MultiShardWriteError, match="placed"):
        session.execute(insert(Basket), new)


def test_rows_are_updated_by_their_primary_keys(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.execute(update(Basket), [{"household_id": 7, "id": 1, "cents": 1}])

    assert stored(cluster, 7) == [(1, 1)]


@pytest.mark.parametrize("statement", [update(Basket).values(cents=1), delete(Line)])
def test_a_change_of_all_rows_is_refused(cluster: ShardCluster, statement: object) -> None:
    with cluster.session(scatter=True) as session, pytest.raises(ScatterRefusedError):
        session.execute(statement)  # type: ignore[call-overload]  # statements of all kinds


def test_a_shard_key_is_not_changed(cluster: ShardCluster) -> None:
    there = elsewhere(cluster, 7)
    of_seven = update(Basket).where(Basket.household_id == 7)
    conflict = (
        upsert(Basket)
        .values(household_id=7, id=1)
        .on_conflict_do_update(index_elements=["household_id", "id"], set_={"household_id": there})
    )

    with cluster.session() as session:
        session.get_one(Basket, (7, 1)).household_id = there
        with pytest.raises(ShardKeyChangedError):
            session.commit()
        session.rollback()
        for statement in (of_seven.values(household_id=there), conflict):
            with pytest.raises(ShardKeyChangedError):
                session.execute(statement)
        with pytest.raises(ShardKeyChangedError):
            session.execute(of_seven, {"household_id": there})


def test_a_new_object_without_a_key_is_refused(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        session.add(Basket(id=1))
        with pytest.raises(ShardKeyError, match="not set"):
            session.flush()


def test_a_two_phase_commit_without_recovery_is_refused(cluster: ShardCluster) -> None:
    with pytest.raises(SettingsError, match="atomic=True"):
        cluster.session(twophase=True)


def test_a_class_that_is_not_sharded_is_not_written(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        session.add(Product(id=1))
        with pytest.raises(UnroutableStatementError, match="Product"):
            session.flush()


# Transactions ----------------------------------------------------------------------------------


def is_fenced(conn: Connection, group_id: int, bucket: int) -> bool:
    """Whether whoever wants to take the bucket away would have to wait."""
    free = conn.scalar(
        text("SELECT pg_try_advisory_xact_lock(datapatterns.fence_class(:group_id), :bucket)"),
        {"group_id": group_id, "bucket": bucket},
    )
    conn.rollback()
    return not free


def test_a_written_bucket_stays_until_the_transaction_ends(cluster: ShardCluster) -> None:
    shard_map = cluster.router.map_of(households)
    place = (shard_map.group_id, shard_map.strategy.bucket(7))

    with cluster.engines[shard_map.shard_of(7)].connect() as mover, cluster.session() as session:
        session.add(Basket(household_id=7, id=2))
        session.flush()
        assert is_fenced(mover, *place)
        session.commit()
        assert not is_fenced(mover, *place)


def test_a_claim_inside_a_savepoint_is_made_again_after_its_rollback(cluster: ShardCluster) -> None:
    shard_map = cluster.router.map_of(households)
    place = (shard_map.group_id, shard_map.strategy.bucket(7))

    with cluster.engines[shard_map.shard_of(7)].connect() as mover, cluster.session() as session:
        session.get(Basket, (7, 1))
        savepoint = session.begin_nested()
        session.execute(update(Basket).where(Basket.household_id == 7).values(cents=1))
        savepoint.rollback()
        session.execute(update(Basket).where(Basket.household_id == 7).values(cents=2))
        assert is_fenced(mover, *place)
        session.commit()

    assert stored(cluster, 7) == [(1, 2)]


def test_an_old_snapshot_does_not_write_to_a_bucket_that_has_left(cluster: ShardCluster) -> None:
    """The fence alone is not enough: the snapshot may be older than the move."""
    shard_map = cluster.router.map_of(households)
    bucket = shard_map.strategy.bucket(7)
    engine = cluster.engines[shard_map.shard_of(7)]
    change = text("UPDATE datapatterns.bucket SET state = :state WHERE bucket = :bucket")

    try:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
            conn.execute(text("SELECT 1 FROM basket"))
            with engine.begin() as mover:
                mover.execute(change, {"state": "moved", "bucket": bucket})
            with pytest.raises(DBAPIError) as caught:
                conn.execute(
                    text("SELECT datapatterns.claim_buckets(:group_id, ARRAY[:bucket])"),
                    {"group_id": shard_map.group_id, "bucket": bucket},
                )
            assert getattr(caught.value.orig, "sqlstate", None) == "40001"
    finally:
        with engine.begin() as mover:
            mover.execute(change, {"state": "owned", "bucket": bucket})


def test_a_bulk_load_keeps_its_buckets(cluster: ShardCluster) -> None:
    shard = shard_of(cluster, 7)
    started, moved = threading.Event(), threading.Event()
    engine: Engine = cluster.engines[shard]

    def move() -> None:
        with engine.begin() as conn:
            started.set()
            conn.execute(text("UPDATE datapatterns.bucket SET epoch = epoch"))
            moved.set()

    with cluster.begin_bulk(households, shard) as conn:
        mover = threading.Thread(target=move)
        mover.start()
        assert started.wait(30)
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity WHERE :me = ANY(pg_blocking_pids(pid))"
        )
        me = conn.scalar(text("SELECT pg_backend_pid()"))
        with engine.connect() as watcher:
            wait_until(lambda: watcher.scalar(waiting, {"me": me}) == 1)
        assert not moved.is_set()
    mover.join(30)
    assert moved.is_set()


def test_a_connection_that_commits_by_itself_cannot_claim(cluster: ShardCluster) -> None:
    with cluster.connect(households, household_id=7) as conn:
        conn.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(IsolationLevelError, match="autocommit"):
            conn.execute(text("SELECT 1"))


def test_each_transaction_of_a_connection_claims_its_bucket(cluster: ShardCluster) -> None:
    shard_map = cluster.router.map_of(households)
    place = (shard_map.group_id, shard_map.strategy.bucket(7))

    with (
        cluster.engines[shard_map.shard_of(7)].connect() as mover,
        cluster.connect(households, household_id=7) as conn,
    ):
        for _ in range(2):
            conn.execute(insert(Line).values(household_id=7, basket_id=1, number=9))
            assert is_fenced(mover, *place)
            conn.rollback()
            assert not is_fenced(mover, *place)


# Pinned sessions -------------------------------------------------------------------------------


def test_a_pinned_session_sees_the_rows_of_its_key_only(cluster: ShardCluster) -> None:
    near = together(cluster, 7)

    with cluster.on(households, household_id=7) as session:
        other = aliased(Basket)
        assert session.scalars(select(Basket.household_id)).all() == [7]
        assert session.scalars(select(other.household_id)).all() == [7]
        pairs = select(Basket.household_id, other.household_id).join(other, other.id == Basket.id)
        assert session.execute(pairs).all() == [(7, 7)]
        mine = select(func.count(Basket.id)).where(Basket.household_id == 7)
        assert session.scalar(select(mine.scalar_subquery())) == 1
        with pytest.raises(ScatterRefusedError):  # a subquery says for itself whose rows it means
            session.scalar(select(select(func.count(Basket.id)).scalar_subquery()))
        assert session.scalar(select(func.count()).select_from(Line)) == 2
        assert session.get(Basket, (near, 1)) is None
        assert session.execute(update(Basket).values(cents=1).returning(Basket.id)).all() == [(1,)]
        session.commit()

    assert (stored(cluster, 7), stored(cluster, near)) == ([(1, 1)], [(1, near * 10)])


def test_pinned_sessions_do_not_see_each_others_keys(cluster: ShardCluster) -> None:
    for key in (7, together(cluster, 7), 7, elsewhere(cluster, 7)):
        with cluster.on(households, household_id=key) as session:
            joined = select(Basket.household_id, Line.household_id).join(Basket.lines)
            assert set(session.execute(joined).all()) == {(key, key)}
            with_lines = session.scalars(select(Basket).options(selectinload(Basket.lines))).one()
            assert {line.household_id for line in with_lines.lines} == {key}
            some = select(Basket.id).where(Basket.lines.any(Line.household_id == key))
            assert session.scalars(some).all() == [1]
            session.expire_all()
            assert with_lines.cents == key * 10


def test_a_pinned_session_writes_rows_of_its_key_only(cluster: ShardCluster) -> None:
    near = together(cluster, 7)
    conflicting = [
        insert(Basket).values(household_id=near, id=2),
        update(Basket).values(household_id=near),
    ]

    with cluster.on(households, household_id=7) as session:
        session.add(Basket(household_id=near, id=2))
        with pytest.raises(ShardKeyError, match=f"pinned to 7, not to key {near}"):
            session.commit()
        session.rollback()
        for statement in conflicting:
            with pytest.raises((ShardKeyError, ShardKeyChangedError)):
                session.execute(statement)

    assert len(stored(cluster, near)) == 1


def test_a_pinned_session_asks_statements_on_tables_for_the_key(cluster: ShardCluster) -> None:
    table = Basket.__table__

    with cluster.on(households, household_id=7) as session:
        with pytest.raises(ScatterRefusedError):
            session.execute(select(table))
        assert len(session.execute(select(table).where(table.c.household_id == 7)).all()) == 1
        assert session.scalar(text("SELECT 1")) == 1
        assert session.scalars(select(Product)).all() == []


@pytest.mark.parametrize("key", [{}, {"tenant_id": 7}, {"household_id": 7, "id": 1}])
def test_a_key_is_given_by_its_column(cluster: ShardCluster, key: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="shard key"):
        cluster.on(households, **key)
