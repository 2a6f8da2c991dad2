"""What Python gets rounded, and what SQLAlchemy names or numbers, is merged right or refused."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    REAL,
    BigInteger,
    ColumnElement,
    Double,
    Engine,
    Float,
    Interval,
    Numeric,
    Select,
    Table,
    Text,
    bindparam,
    case,
    cast,
    create_engine,
    func,
    insert,
    literal,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datapatterns.errors import (
    PageCursorError,
    PartialAnswerError,
    ShardKeyError,
    UnmergeableQueryError,
    UnroutableStatementError,
)
from datapatterns.sharding import AllShards, EntityGroup, Hash, ShardCluster, keyset
from datapatterns.testing import Databases
from tests.fixtures.atomic import needs_prepared_transactions
from tests.fixtures.shard_model import named

pytestmark = pytest.mark.postgres

labs = EntityGroup("lab", strategy=Hash(buckets=64))


class Base(DeclarativeBase):
    pass


class Reading(Base):
    """Numbers that Python does not get as they are."""

    __tablename__ = "reading"
    __shard__ = labs.by("lab_id")

    lab_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    number: Mapped[int | None]
    exact: Mapped[Decimal]
    as_float: Mapped[float] = mapped_column(Numeric(asdecimal=False))
    as_decimal: Mapped[Decimal] = mapped_column(Float(53, asdecimal=True))
    small: Mapped[float] = mapped_column(REAL)
    span: Mapped[Any] = mapped_column(Interval)


TABLE: Any = Reading.__table__
ROWS: list[dict[str, Any]] = [
    {
        "lab_id": key,
        "number": key % 3 or None,
        "exact": Decimal("NaN") if key % 2 else Decimal(1),
        "as_float": 1 + Decimal(key % 5).scaleb(-20),
        "as_decimal": 0.1 + (key % 3) * 1e-13,
        "small": (0.1, 0.2, 0.3)[key % 3],
        "span": "1 year" if key % 2 else "363 days",
    }
    for key in range(24)
]


@pytest.fixture(scope="module")
def shops(databases: Databases) -> Iterator[tuple[ShardCluster, Engine]]:
    urls = [databases.new() for _ in range(4)]
    engines = [create_engine(url) for url in urls]
    for engine in engines:
        Base.metadata.create_all(engine)
    with ShardCluster(control=urls[1], shards=named(urls[1:]), groups=[labs]) as cluster:
        cluster.create_map()
        placed = cluster.placed(labs, ROWS, key=lambda row: int(row["lab_id"]))
        # As text, so that PostgreSQL has all the digits.
        filling = insert(TABLE).values(
            {name: cast(bindparam(f"p_{name}", type_=Text), TABLE.c[name].type) for name in ROWS[0]}
        )
        with engines[0].begin() as conn:
            conn.execute(filling, [_written(row) for row in ROWS])
        for shard, rows in placed.items():
            with cluster.begin_bulk(labs, shard) as conn:
                conn.execute(filling, [_written(row) for row in rows])
        yield cluster, engines[0]
    for engine in engines:
        engine.dispose()
    for url in urls:
        databases.drop(url)


def _written(row: dict[str, Any]) -> dict[str, str | None]:
    return {f"p_{name}": None if value is None else str(value) for name, value in row.items()}


@pytest.fixture
def cluster(shops: tuple[ShardCluster, Engine]) -> ShardCluster:
    return shops[0]


MIXED: ColumnElement[Any] = Reading.exact * cast(Reading.as_decimal, Double)

STATEMENTS: dict[str, Select[*tuple[Any, ...]]] = {
    "decimals as floats, in order": select(Reading.lab_id).order_by(
        Reading.as_float, Reading.lab_id
    ),
    "different decimals as floats": select(Reading.as_float).distinct(),
    "groups of decimals as floats": select(Reading.as_float, func.count()).group_by(
        Reading.as_float
    ),
    "floats as decimals, in order": select(Reading.lab_id).order_by(
        Reading.as_decimal, Reading.lab_id
    ),
    "different floats as decimals": select(Reading.as_decimal).distinct(),
    "floats that become decimals": select(MIXED).distinct(),
    "what is taken for a float": select(
        type_coerce(cast(Reading.as_float, Numeric), Float)
    ).distinct(),
    "floats in a condition only": select(Reading.lab_id).order_by(
        case((Reading.small > 0.15, Reading.lab_id), else_=-Reading.lab_id)
    ),
    "a group because of HAVING": select(literal(1)).select_from(Reading).having(literal(True)),
    "no group because of HAVING": select(literal(1)).select_from(Reading).having(literal(False)),
}


@pytest.mark.parametrize("yield_per", [None, 3])
@pytest.mark.parametrize("name", STATEMENTS)
def test_what_python_gets_rounded_is_merged_by_postgres(
    shops: tuple[ShardCluster, Engine], name: str, yield_per: int | None
) -> None:
    cluster, whole = shops
    statement = STATEMENTS[name]
    options = {} if yield_per is None else {"yield_per": yield_per}
    with Session(whole) as session:
        expected = session.execute(statement).all()
    with cluster.session(scatter=True) as session:
        found = session.execute(statement, execution_options=options).all()
    if not statement._order_by_clauses:  # noqa: SLF001 -- there is no public name
        found, expected = sorted(found, key=repr), sorted(expected, key=repr)
    assert list(map(repr, found)) == list(map(repr, expected))


@pytest.mark.parametrize(
    "argument",
    [MIXED, func.coalesce(Reading.number, Reading.small), Reading.number * Reading.small],
    ids=["decimals and floats", "numbers or floats", "numbers and floats"],
)
@pytest.mark.parametrize("having", [False, True])
def test_no_sum_hides_floats(
    cluster: ShardCluster, argument: ColumnElement[Any], *, having: bool
) -> None:
    statement = select(func.sum(argument)).select_from(Reading)
    if having:
        statement = statement.having(func.count() > 0)
    with cluster.session(scatter=True) as session, pytest.raises(UnmergeableQueryError):
        session.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        select(func.count().filter(TABLE.c.number == 1), func.max(TABLE.c.lab_id)),
        select(-TABLE.c.lab_id, TABLE.c.lab_id + 1).order_by(TABLE.c.lab_id),
        select(TABLE.c.number, func.count()).group_by(TABLE.c.number).order_by(TABLE.c.number),
    ],
    ids=["aggregates", "expressions", "groups"],
)
def test_columns_have_the_names_that_sqlalchemy_makes_up(
    shops: tuple[ShardCluster, Engine], statement: Select[*tuple[Any, ...]]
) -> None:
    cluster, whole = shops
    with Session(whole) as session:
        expected = list(session.execute(statement).mappings())
    with cluster.session(scatter=True) as session:
        assert list(session.execute(statement).mappings()) == expected


def test_the_first_rows_of_distinct_on_are_no_part_of_an_answer(cluster: ShardCluster) -> None:
    statement = select(Reading.number, Reading.lab_id).order_by(Reading.number, Reading.lab_id)
    statement = statement.ext(distinct_on(Reading.number))
    policy = AllShards(partial="allow")
    with cluster.session() as session:
        session.execute(statement, execution_options={"scatter": True}).all()
        with pytest.raises(PartialAnswerError, match="DISTINCT ON"):
            session.execute(statement, execution_options={"shard": policy})


# Pages -------------------------------------------------------------------------------------------


def pages(session: Session, statement: Select[*tuple[Any, ...]], by: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    after = None
    while len(found) <= 2 * len(ROWS):
        page = keyset(statement, by=by, size=4, after=after).read(session)
        found += page.scalars()
        after = page.next
        if after is None:
            return found
    pytest.fail("these pages do not end")


@pytest.mark.parametrize("descending", [False, True])
def test_pages_by_small_floats_hold_every_row_once(
    shops: tuple[ShardCluster, Engine], *, descending: bool
) -> None:
    cluster, whole = shops
    by = [Reading.small, Reading.lab_id]
    if descending:
        by = [each.desc() for each in by]  # type: ignore[misc]
    statement = select(Reading.lab_id)
    with Session(whole) as one:
        expected = list(one.scalars(statement.order_by(*by)))
        assert pages(one, statement, by) == expected
    with cluster.session(scatter=True) as session:
        assert pages(session, statement, by) == expected


@pytest.mark.parametrize("column", [Reading.as_float, Reading.as_decimal, Reading.span])
def test_no_page_begins_after_a_value_that_was_rounded(column: ColumnElement[Any]) -> None:
    with pytest.raises(PageCursorError, match="exactly"):
        keyset(select(Reading.lab_id), by=[column, Reading.lab_id], size=4)


def test_rows_that_agree_in_nan_are_not_lost(cluster: ShardCluster) -> None:
    statement = select(Reading.lab_id).where(Reading.exact != 1)
    with cluster.session(scatter=True) as session, pytest.raises(PageCursorError, match="agree"):
        pages(session, statement, [Reading.exact])
    with cluster.session(scatter=True) as session:
        found = pages(session, statement, [Reading.exact, Reading.lab_id])
    assert found == list(range(1, 24, 2))


def test_no_page_is_ordered_by_what_a_subquery_may_leave_out() -> None:
    other = Reading.__table__.alias()
    inner = select(Reading.lab_id, other.c.lab_id.label("other"))
    found = inner.outerjoin(other, other.c.lab_id == Reading.lab_id + 9).subquery()
    with pytest.raises(PageCursorError, match="subquery"):
        keyset(select(found.c.lab_id), by=[found.c.other, found.c.lab_id], size=4)


@pytest.mark.parametrize(
    "column",
    [func.row_number().over(order_by=Reading.lab_id), func.count().over(), func.count()],
    ids=["row_number", "count over", "count"],
)
def test_no_page_counts_the_rows_that_it_holds(column: ColumnElement[Any]) -> None:
    with pytest.raises(UnmergeableQueryError, match="window function"):
        keyset(select(Reading.lab_id, column), by=[Reading.lab_id], size=4)


# Writes ------------------------------------------------------------------------------------------

REST = {name: ROWS[0][name] for name in ("exact", "as_float", "as_decimal", "small")}


def on_two_shards(cluster: ShardCluster) -> tuple[int, int]:
    shard_map = cluster.router.map_of(labs)
    first = 1_000
    return first, next(
        key for key in range(1_001, 2_000) if shard_map.shard_of(key) != shard_map.shard_of(first)
    )


@pytest.mark.parametrize("way", ["one", "list"])
@pytest.mark.parametrize("target", [Reading, TABLE], ids=["class", "table"])
def test_a_passed_key_prevails_over_that_of_the_parameter(
    cluster: ShardCluster,
    target: Any,  # noqa: ANN401 -- a class or a table
    way: str,
) -> None:
    made, passed = on_two_shards(cluster)
    row = {**REST, "span": func.make_interval(), "lab_id": bindparam("key", made)}
    statement = insert(target).values(row)
    parameters: Any = [{"key": passed}] if way == "list" else {"key": passed}
    with cluster.session() as session:
        session.execute(statement, parameters)
        found = select(Reading.lab_id).where(Reading.lab_id == passed)
        assert session.scalars(found).all() == [passed]
    with cluster.on(labs, lab_id=made) as pinned, pytest.raises(ShardKeyError):
        pinned.execute(statement, parameters)


def test_several_rows_of_values_take_no_parameters(cluster: ShardCluster) -> None:
    made, passed = on_two_shards(cluster)
    statement = insert(Reading).values([{**REST, "lab_id": bindparam("key", made)}])
    with cluster.session() as session, pytest.raises(UnroutableStatementError, match="VALUES"):
        session.execute(statement, {"key": passed})


def test_rows_of_a_table_name_the_same_columns(cluster: ShardCluster) -> None:
    needs_prepared_transactions(cluster.engines["s0"].url)
    rows = [{**REST, "span": None, "lab_id": key} for key in on_two_shards(cluster)]
    rows[1]["number"] = 5
    table: Table = TABLE
    with (
        cluster.session(atomic=True) as session,
        pytest.raises(UnmergeableQueryError, match="different columns"),
    ):
        session.execute(insert(table), rows)


@pytest.mark.parametrize("target", [Reading, TABLE], ids=["class", "table"])
def test_a_star_is_refused(
    cluster: ShardCluster,
    target: Any,  # noqa: ANN401 -- a class or a table
) -> None:
    statement: Select[*tuple[Any, ...]] = select(literal_column("*")).select_from(target)
    with cluster.session(scatter=True) as session, pytest.raises(UnmergeableQueryError):
        session.execute(statement)
