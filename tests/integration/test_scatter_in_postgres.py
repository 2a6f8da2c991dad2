"""What Python cannot merge exactly, PostgreSQL finishes: in a table of what the shards sent."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    URL,
    Engine,
    Integer,
    Select,
    create_engine,
    event,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by, distinct_on
from sqlalchemy.exc import DataError, ProgrammingError
from sqlalchemy.orm import Session

from datapatterns.errors import MergeLimitError, MissingRightsError, UnmergeableQueryError
from datapatterns.migrations import Migrations
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.empty_database import told
from tests.fixtures.shard_model import (
    Basket,
    Line,
    fill,
    households,
    named,
    sharded_shop,
    whole_shop,
)

pytestmark = pytest.mark.postgres

STORES = ["b", "B", "ä", "a", "Z", None, "%s"]
ROWS: list[dict[str, Any]] = [
    {
        "household_id": number,
        "id": number,
        "cents": number % 7,
        "store": STORES[number % 7],
        "price": Decimal(number) / 4,
        "paid": number % 3 == 0,
    }
    for number in range(50)
]


@pytest.fixture(scope="module")
def urls(databases: Databases) -> Iterator[list[URL]]:
    urls = [databases.new() for _ in range(5)]
    yield urls
    for url in urls:
        databases.drop(url)


@pytest.fixture(scope="module")
def shops(urls: list[URL]) -> Iterator[tuple[ShardCluster, Engine]]:
    with sharded_shop(urls[1:]) as cluster, whole_shop(urls[0]) as whole:
        fill(cluster, whole, ROWS)
        yield cluster, whole


@pytest.fixture
def cluster(shops: tuple[ShardCluster, Engine]) -> ShardCluster:
    return shops[0]


STATEMENTS: dict[str, Select[*tuple[Any, ...]]] = {
    "having": select(Basket.cents, func.sum(Basket.id))
    .group_by(Basket.cents)
    .having(func.count() > 7)
    .order_by(Basket.cents),
    "an expression over aggregates": select(Basket.paid, func.sum(Basket.cents) / func.count())
    .group_by(Basket.paid)
    .order_by(Basket.paid),
    "order by what is not selected": select(Basket.store)
    .group_by(Basket.store)
    .order_by(func.count().desc(), Basket.store)
    .limit(3)
    .offset(1),
    "distinct aggregates": select(
        func.count(Basket.store.distinct()),
        func.sum(Basket.cents.distinct()).filter(Basket.cents > 2),
        func.count(),
        func.avg(Basket.price),
    ),
    "spreads": select(func.stddev(Basket.cents), func.var_pop(Basket.price)),
    "spreads of one": select(func.stddev(Basket.cents), func.var_pop(Basket.price)).where(
        Basket.cents > 5, Basket.id < 7
    ),
    "an ordered list": select(
        func.string_agg(Basket.store, aggregate_order_by(literal(","), Basket.store, Basket.id))
    ),
    "percentile": select(func.percentile_cont(0.5).within_group(Basket.price.desc())),
    "a language's order": select(Basket.store, Basket.id).order_by(Basket.store, Basket.id),
    "the last in a language": select(func.max(Basket.store), func.min(Basket.store)),
    "distinct in a language": select(Basket.store).distinct().order_by(Basket.store.desc()),
    "distinct on": select(Basket.store, Basket.id)
    .ext(distinct_on(Basket.store))
    .order_by(Basket.store, Basket.id.desc()),
    "a window": select(
        Basket.id,
        func.row_number().over(partition_by=Basket.paid, order_by=[Basket.store, Basket.id]),
    )
    .order_by(Basket.id)
    .limit(9),
    "a window over groups": select(
        Basket.store, func.rank().over(order_by=func.sum(Basket.price).desc())
    )
    .group_by(Basket.store)
    .order_by(Basket.store),
    "a join": select(func.count(Basket.store.distinct()))
    .join(Basket.lines, isouter=True)
    .where(Line.number.is_(None), Basket.store.not_in(["%s", "Z"])),
    "nothing at all": select(
        func.count(Basket.store.distinct()), func.count(), func.sum(Basket.cents) + 1
    ).where(Basket.id < 0),
}


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_postgres_finishes_what_python_cannot(
    shops: tuple[ShardCluster, Engine], statement: Select[*tuple[Any, ...]]
) -> None:
    cluster, whole = shops
    with cluster.session(scatter=True) as session:
        found = session.execute(statement).all()

    with Session(whole) as session:
        expected = session.execute(statement).all()
    assert [repr(tuple(row)) for row in found] == [repr(tuple(row)) for row in expected]


def test_windows_by_the_key_are_finished_by_their_shards(
    shops: tuple[ShardCluster, Engine],
) -> None:
    cluster, whole = shops
    rank = func.row_number().over(partition_by=Basket.household_id, order_by=Basket.id)
    statement = select(Basket, rank).order_by(Basket.id).limit(5)
    with cluster.session(scatter=True) as session:
        found = [(basket.id, number) for basket, number in session.execute(statement)]

    with Session(whole) as session:
        assert found == [(basket.id, number) for basket, number in session.execute(statement)]


def test_own_changes_are_combined_before_the_commit(cluster: ShardCluster) -> None:
    distinct = func.count(Basket.store.distinct())
    with cluster.session(scatter=True) as session:
        before = session.scalars(select(distinct)).one()
        session.add(Basket(household_id=3, id=1000, store="new"))

        assert session.scalars(select(distinct)).one() == before + 1


def test_a_transaction_over_shards_can_be_prepared_after_a_combined_read(
    cluster: ShardCluster,
) -> None:
    """One that has touched a temporary table cannot."""
    with cluster.session(scatter=True) as session:
        session.scalar(select(func.count(Basket.store.distinct())))
        touched = [
            session.connection(bind_arguments={"shard_id": shard}).scalar(
                text("SELECT pg_my_temp_schema()::oid::bigint")
            )
            for shard in cluster.engines
        ]

    assert touched == [0, 0, 0, 0]


def test_rows_are_known_by_their_columns(cluster: ShardCluster) -> None:
    total = func.sum(Basket.cents).label("total")
    plain = select(Basket.id, Basket.cents.label("c")).order_by(Basket.id).limit(1)
    grouped = select(Basket.store, total).group_by(Basket.store).having(total > 0)
    with cluster.session(scatter=True) as session:
        row = session.execute(plain).one()
        group = session.execute(grouped.order_by(Basket.store)).first()

    assert (row._mapping[Basket.id], row.c) == (0, 0)  # noqa: SLF001 -- its public name
    assert group is not None
    assert group._mapping[Basket.store] == group.store  # noqa: SLF001 -- its public name
    assert group._mapping[total] == group.total  # noqa: SLF001 -- its public name


@pytest.mark.usefixtures("shops")
def test_no_more_rows_are_combined_than_may_be_merged(urls: list[URL]) -> None:
    lists = select(func.array_agg(aggregate_order_by(Basket.id, Basket.id)))
    with ShardCluster(
        control=urls[1], shards=named(urls[1:]), groups=[households], merge_rows_max=49
    ) as narrow:
        with narrow.session(scatter=True) as session, pytest.raises(MergeLimitError):
            session.scalar(lists)
        with narrow.session(scatter=True) as session:
            assert session.scalar(lists.where(Basket.id < 49)) == [*range(49)]


@pytest.mark.usefixtures("shops")
def test_who_holds_all_connections_of_the_shards_can_still_combine(urls: list[URL]) -> None:
    lists = select(func.array_agg(aggregate_order_by(Basket.id, Basket.id)))
    few = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.2}
    with (
        ShardCluster(
            control=urls[1], shards=named(urls[1:]), groups=[households], engine_options=few
        ) as narrow,
        narrow.session(scatter=True) as session,
    ):
        for _ in range(len(urls)):  # each of them combines in turn
            assert session.scalar(lists.where(Basket.id < 49)) == [*range(49)]


def test_what_listeners_of_engines_add_to_statements_confines_what_is_combined(
    cluster: ShardCluster,
) -> None:
    def few(_conn: object, sent: Any, several: Any, values: Any, _options: object) -> Any:  # noqa: ANN401 -- SQLAlchemy's own
        if isinstance(sent, Select) and "basket" in str(sent):
            sent = sent.where(Basket.id < 3)
        return sent, several, values

    lists = select(func.array_agg(aggregate_order_by(Basket.id, Basket.id)))
    for engine in cluster.engines.values():
        event.listen(engine, "before_execute", few, retval=True)
    try:
        with cluster.session(scatter=True) as session:
            assert session.scalar(lists) == [*range(3)]
    finally:
        for engine in cluster.engines.values():
            event.remove(engine, "before_execute", few)


def test_what_a_shard_cannot_compute_is_an_error_of_sqlalchemy(cluster: ShardCluster) -> None:
    statement = select(func.count((1 / Basket.cents).distinct()))
    with cluster.session(scatter=True) as session, pytest.raises(DataError, match="division"):
        session.scalar(statement)


@pytest.fixture
def reader(urls: list[URL], limited_role: str) -> Iterator[str]:
    """A role that reads all, and may not create temporary tables."""

    def run(*commands: str) -> None:
        for url in urls[1:]:
            engine = create_engine(url, isolation_level="AUTOCOMMIT")
            with engine.connect() as conn:
                for command in commands:
                    conn.execute(text(command.format(database=url.database)))
            engine.dispose()

    run('REVOKE TEMPORARY ON DATABASE "{database}" FROM PUBLIC')
    run(f"GRANT pg_read_all_data TO {limited_role}")
    yield limited_role
    run('GRANT TEMPORARY ON DATABASE "{database}" TO PUBLIC')


@pytest.mark.usefixtures("shops")
def test_a_role_without_temporary_tables_is_told(urls: list[URL], reader: str) -> None:
    shards = [told(url, role=reader) for url in urls[1:]]
    with (
        ShardCluster(control=shards[0], shards=named(shards), groups=[households]) as cluster,
        cluster.session(scatter=True) as session,
    ):
        assert session.scalar(select(func.count()).select_from(Basket)) == len(ROWS)
        with pytest.raises(MissingRightsError, match="temporary tables"):
            session.scalar(select(func.count(Basket.store.distinct())))


def test_a_plan_says_whom_it_asks_and_who_merges(cluster: ShardCluster) -> None:
    one = cluster.explain(select(Basket.id).where(Basket.household_id == 7))
    python = cluster.explain(select(Basket.store).order_by(Basket.store).limit(3))
    postgres = cluster.explain(
        select(Basket.store, func.count()).group_by(Basket.store).having(func.count() > 1)
    )

    assert (len(one.shards), one.merged_by) == (1, None)
    assert (len(python.shards), python.merged_by, python.combined) == (4, "python", None)
    assert (postgres.merged_by, postgres.reason) == ("postgresql", "HAVING")
    assert "HAVING" not in postgres.sent
    assert "HAVING" in str(postgres).splitlines()[-1]
    with pytest.raises(UnmergeableQueryError, match="FOR UPDATE"):
        cluster.explain(select(Basket.id).with_for_update())


@pytest.fixture
def other_order(databases: Databases, server_url: URL) -> Iterator[list[URL]]:
    """Two databases, of which one orders text by its bytes and the other by something else."""
    first = databases.new()
    second = first.set(database=f"{first.database}_posix")
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(
            text(
                f'CREATE DATABASE "{second.database}" TEMPLATE template0 ENCODING UTF8'
                " LOCALE_PROVIDER libc LOCALE 'POSIX'"
            )
        )
    Migrations({"main": second}).upgrade()
    yield [first, second]
    with admin.connect() as conn:
        conn.execute(text(f'DROP DATABASE "{second.database}" WITH (FORCE)'))
    admin.dispose()
    databases.drop(first)


def test_shards_that_order_text_in_two_ways_are_told(other_order: list[URL]) -> None:
    with (
        sharded_shop(other_order) as cluster,
        cluster.session(scatter=True) as session,
    ):
        for statement in (
            select(Basket.id).order_by(Basket.store),
            select(func.max(Basket.store)),
            select(Basket).order_by(Basket.store).limit(1),
        ):
            with pytest.raises(UnmergeableQueryError, match="not the same on all shards"):
                session.execute(statement).all()
        # What compares no text, or its bytes, is as good as ever.
        session.execute(select(Basket.id).order_by(Basket.code)).all()
        session.execute(select(func.count(Basket.cents.distinct()))).all()


def test_statements_of_one_shape_are_planned_once_with_their_own_values(
    shops: tuple[ShardCluster, Engine],
) -> None:
    """What was found out about the first must not be taken for the others."""
    cluster, whole = shops

    def statements(one: int, other: int) -> list[Select[*tuple[Any, ...]]]:
        rest = Basket.id % one
        return [
            select(Basket.id).where(Basket.cents > one).order_by(Basket.id).limit(other),
            select(Basket.id).order_by(Basket.id).limit(one).offset(other),
            select(Basket.store).where(Basket.id.in_([one, other, 7, 9])).order_by(Basket.store),
            select(rest, func.count()).group_by(rest).having(func.sum(Basket.id) > other * 9),
            # Ordered by what is selected only if both values are the same.
            select((Basket.id % one).label("a"))
            .distinct()
            .order_by(Basket.id % literal(other, Integer)),
            select(func.count(Basket.store.distinct()), func.sum(Basket.id) + one).where(
                Basket.id > other
            ),
        ]

    for pair in ((2, 2), (3, 3), (2, 3), (5, 2), (3, 3)):
        for statement in statements(*pair):
            with cluster.session(scatter=True) as session:
                try:
                    found = session.execute(statement).all()
                except (UnmergeableQueryError, ProgrammingError):
                    continue
            with Session(whole) as plain:
                expected = plain.execute(statement).all()
            assert sorted(map(repr, found)) == sorted(map(repr, expected)), (pair, str(statement))


def test_what_is_grouped_by_depends_on_the_values(cluster: ShardCluster) -> None:
    """Two statements of one shape, of which one selects what it groups by."""

    def by_rest(selected: int, grouped: int) -> Select[*tuple[Any, ...]]:
        rest = Basket.id % grouped
        found = select(Basket.id % selected, func.count()).group_by(rest)
        return found.having(func.count() > 0)

    with cluster.session(scatter=True) as session:
        assert len(session.execute(by_rest(3, 3)).all()) == 3
        with pytest.raises(UnmergeableQueryError, match="GROUP BY"):
            session.execute(by_rest(3, 4))
        assert len(session.execute(by_rest(4, 4)).all()) == 4


def test_a_listener_sees_the_values_of_its_own_statement(cluster: ShardCluster) -> None:
    def first(number: int) -> Select[*tuple[Any, ...]]:
        return select(Basket.id).where(Basket.id >= number).order_by(Basket.id).limit(1)

    with cluster.session(scatter=True) as session:
        assert session.scalar(first(3)) == 3
        event.listen(session, "do_orm_execute", lambda _state: None)
        assert [session.scalar(first(number)) for number in (5, 7)] == [5, 7]
