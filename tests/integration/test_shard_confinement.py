"""What is written or shown stays on the shard, and within the key, that was looked at."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, cast

import pytest
from sqlalchemy import (
    CHAR,
    URL,
    BigInteger,
    Column,
    Executable,
    Float,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    TypeDecorator,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Bundle, DeclarativeBase, Mapped, Session, aliased, mapped_column
from sqlalchemy.types import TypeEngine, UserDefinedType

from datapatterns.errors import (
    ScatterRefusedError,
    ShardedTableError,
    ShardKeyChangedError,
    ShardKeyError,
    UnmergeableQueryError,
    UnroutableStatementError,
)
from datapatterns.sharding import EntityGroup, Hash, Range, ShardCluster
from datapatterns.sharding.routing.key_conditions import Leaf, key_condition
from datapatterns.testing import Databases
from tests.fixtures.shard_model import Basket, Line, Product, households, named, sharded_shop

pytestmark = pytest.mark.postgres

BASKETS = cast("Table", Basket.__table__)
LINES = cast("Table", Line.__table__)
SEVEN = Basket.household_id == 7
LOST = 1_000_007
"""A household that no basket is of."""


class Successor(TypeDecorator[int]):
    """Sends another value than it is given."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: object) -> int | None:  # noqa: ARG002 -- as SQLAlchemy calls it
        return None if value is None else value + 1


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls = [databases.new() for _ in range(4)]
    with sharded_shop(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    for engine in shop.engines.values():
        with engine.begin() as conn:
            conn.execute(text("TRUNCATE basket, line"))
    rows = [{"household_id": key, "id": 1, "cents": key * 10} for key in (*range(30), twin(7))]
    for shard, mine in shop.placed(households, rows, key=lambda row: row["household_id"]).items():
        with shop.begin_bulk(households, shard) as conn:
            conn.execute(insert(Basket), mine)
            lines = [
                {"household_id": row["household_id"], "basket_id": 1, "number": 1} for row in mine
            ]
            conn.execute(insert(Line), lines)
    return shop


def twin(key: int) -> int:
    """Another key in the same bucket."""
    bucket = households.strategy.bucket
    return next(other for other in range(100, 9_999) if bucket(other) == bucket(key))


def everything(cluster: ShardCluster) -> list[tuple[Any, ...]]:
    with cluster.session(scatter=True) as session:
        order = (Basket.household_id, Basket.id)
        statement = select(*order, Basket.cents).order_by(*order)
        return [tuple(row) for row in session.execute(statement)]


INSERTING = insert(Basket).values(household_id=LOST, id=1).returning(Basket.id).cte("inserting")
DELETING = delete(Basket).where(Basket.cents >= 0).returning(Basket.id).cte("deleting")
TOTAL = select(func.sum(Basket.cents)).scalar_subquery()
ROW = {"household_id": 7, "id": 1, "cents": 5}


@pytest.mark.parametrize(
    "statement",
    [
        select(Basket.id, INSERTING.c.id).where(SEVEN, Basket.id == INSERTING.c.id),
        select(Basket.id).where(SEVEN).add_cte(DELETING),
        update(Basket).where(SEVEN, Basket.id.in_(select(DELETING.c.id))).values(cents=1),
        insert(Basket).values(household_id=7, id=2, cents=select(DELETING.c.id).scalar_subquery()),
        insert(Basket).values(household_id=7, id=2, cents=TOTAL),
        insert(Basket).values([{"household_id": 7, "id": 2, "cents": TOTAL}]),
        insert(Basket).values(household_id=7, id=2).returning(TOTAL),
        upsert(Basket).values(ROW).on_conflict_do_update(
            index_elements=["household_id", "id"], set_={"cents": TOTAL}
        ),
        upsert(Basket).values(ROW).on_conflict_do_update(
            index_elements=["household_id", "id"], set_={"cents": 1}, where=TOTAL > 0
        ),
        insert(Basket).values(household_id=7, id=2, cents=text("(SELECT 1)")),
    ],
)  # fmt: skip
def test_a_statement_inside_a_statement_does_not_write_past_the_key(
    cluster: ShardCluster, statement: Executable
) -> None:
    before = everything(cluster)

    for session in (cluster.session(), cluster.on(households, household_id=7)):
        with session, pytest.raises((UnroutableStatementError, ScatterRefusedError)):  # noqa: PT012 -- either may refuse
            session.execute(statement)
            session.commit()

    assert everything(cluster) == before


@pytest.mark.parametrize("pinned", [False, True])
def test_an_object_is_not_set_to_what_one_shard_says_of_all(
    cluster: ShardCluster, *, pinned: bool
) -> None:
    session: Session = cluster.on(households, household_id=7) if pinned else cluster.session()
    with session:
        session.get_one(Basket, (7, 1)).cents = TOTAL
        with pytest.raises(UnroutableStatementError, match="subquery"):
            session.flush()
        session.rollback()
        session.add(Basket(household_id=7, id=2, cents=TOTAL))
        with pytest.raises(UnroutableStatementError, match="subquery"):
            session.flush()


def test_rows_to_update_do_not_hold_subqueries(cluster: ShardCluster) -> None:
    with cluster.session() as session, pytest.raises(UnroutableStatementError, match="subquery"):
        session.execute(update(Basket), [{**ROW, "cents": TOTAL}])


@pytest.mark.parametrize(
    ("statement", "parameters", "options"),
    [
        (update(Basket), ROW, {}),
        (update(BASKETS), ROW, {}),
        (update(BASKETS), [ROW], {}),
        (update(Basket), [ROW], {"dml_strategy": "core_only"}),
        (update(Basket), [ROW], {"dml_strategy": "orm"}),
    ],
)
def test_values_for_all_rows_are_not_taken_for_a_row(
    cluster: ShardCluster,
    statement: Executable,
    parameters: dict[str, object] | None,
    options: dict[str, Any],
) -> None:
    before = everything(cluster)

    for session in (cluster.session(), cluster.on(households, household_id=7)):
        with session, pytest.raises(ShardKeyChangedError):
            session.execute(statement, parameters, execution_options=options)

    assert everything(cluster) == before


def test_a_parameter_that_is_sent_as_another_value_says_no_key(cluster: ShardCluster) -> None:
    seven = literal(7, Successor())

    with cluster.session() as session:
        with pytest.raises(ScatterRefusedError):
            session.execute(select(Basket).where(Basket.household_id == seven))
        with pytest.raises(ScatterRefusedError):
            session.execute(select(Basket).where(Basket.household_id.in_([seven])))
        with pytest.raises(ShardKeyError):
            session.execute(insert(Basket).values(household_id=seven, id=2))


class Negated(UserDefinedType[int]):
    """Sends another value than it is given, and is no TypeDecorator."""

    cache_ok = True

    def get_col_spec(self, **_named: object) -> str:
        return "bigint"

    def bind_processor(self, dialect: object) -> Callable[[int | None], int | None]:  # noqa: ARG002 -- as SQLAlchemy calls it
        return lambda value: None if value is None else -value


@pytest.mark.parametrize(
    ("type_", "error"),
    [(Float(), ShardKeyError), (Numeric(), ShardKeyError), (Negated(), ScatterRefusedError)],
)
def test_a_parameter_that_compares_otherwise_than_keys_says_no_key(
    cluster: ShardCluster, type_: TypeEngine[int], error: type[Exception]
) -> None:
    key = Basket.household_id
    seven = literal(7, type_)

    with cluster.session() as session:
        for condition in (key == seven, key.in_([seven]), key < seven, key.between(seven, 9)):
            with pytest.raises(error):
                session.execute(select(Basket).where(condition))


def test_a_text_parameter_with_a_comparison_of_its_own_says_no_key() -> None:
    texts = EntityGroup("by_code", strategy=Range(["g"]), key=Text)
    codes = Table("codes", MetaData(), Column("code", Text(collation="C"), primary_key=True))
    leaf = Leaf(codes, codes, texts.by("code"))
    code = codes.c.code
    folded = literal("X", CITEXT())
    sorted_otherwise = literal("X", Text(collation="de-x-icu"))

    for condition in (
        code == folded,
        code.in_([folded]),
        code == literal("X", CHAR()),
        code == sorted_otherwise,
        code < sorted_otherwise,
        code.between(sorted_otherwise, "Z"),
    ):
        assert key_condition(condition, [leaf]) is None
    for condition in (code == "X", code < literal("X"), code.between("A", "Z"), code.in_(["X"])):
        assert key_condition(condition, [leaf]) is not None


def test_a_key_of_a_type_that_differs_on_the_server_is_refused() -> None:
    texts = EntityGroup("by_code", key=Text)
    folding = Text().with_variant(CITEXT(), "postgresql")
    local = Text().with_variant(String(5), "sqlite")

    for type_ in (folding, local):
        codes = Table("codes", MetaData(), Column("code", type_, primary_key=True))
        with pytest.raises(ShardedTableError) if type_ is folding else nullcontext():
            texts.by("code").checked_columns(codes)


def test_a_text_key_that_would_lose_its_blanks_is_refused(shard_urls: list[URL]) -> None:
    names = EntityGroup("named", strategy=Hash(buckets=4), key=Text)

    class Base(DeclarativeBase):
        pass

    class Named(Base):
        __tablename__ = "named"
        __shard__ = names.by("name")
        name: Mapped[str] = mapped_column(String(3), primary_key=True)

    shards = named(shard_urls)
    with ShardCluster(control=shard_urls[0], shards=shards, groups=[names]) as cluster:
        cluster.create_map()
        for engine in cluster.engines.values():
            Base.metadata.create_all(engine)
        with cluster.session() as session:
            with pytest.raises(ShardKeyError, match="longer"):
                session.execute(insert(Named).values(name="abc "))
            session.add(Named(name="abc "))
            with pytest.raises(ShardKeyError, match="longer"):
                session.flush()
            session.rollback()
            session.execute(insert(Named).values(name="ab "))
            session.commit()
        assert all(table.misplaced == 0 for shard in cluster.stats() for table in shard.tables)


def test_an_outer_join_is_confined_by_what_its_tables_must_be(cluster: ShardCluster) -> None:
    on_seven = (Line.basket_id == Basket.id) & (Line.household_id == 7)

    with cluster.session() as session:
        joined = select(Basket.household_id, Line.household_id).outerjoin(Line, on_seven)
        assert session.execute(joined.where(SEVEN)).all() == [(7, 7)]
        with pytest.raises(ScatterRefusedError):
            session.execute(joined.where(Line.household_id.is_not(None)))
        full = select(Basket.id).outerjoin(Line, on_seven, full=True).where(SEVEN)
        with pytest.raises(ScatterRefusedError):
            session.execute(full)


def test_merged_aggregates_keep_the_shape_that_was_asked_for(cluster: ShardCluster) -> None:
    bundle: Bundle[Any] = Bundle("sums", func.count(Basket.id), func.sum(Basket.cents))

    with (
        cluster.session(scatter=True) as session,
        pytest.raises(UnmergeableQueryError, match="Bundle"),
    ):
        session.execute(select(bundle))


def test_text_is_ordered_by_the_collation_that_overrules_another(cluster: ShardCluster) -> None:
    mixed = Basket.code + Basket.store.collate("und-x-icu")
    engine = next(iter(cluster.engines.values()))

    with engine.connect() as conn, cluster.session(scatter=True) as session:
        if not conn.scalar(text("SELECT to_regcollation('\"und-x-icu\"')")):
            pytest.skip("this server was built without ICU")
        written = session.scalars(select(mixed).order_by(mixed)).all()
        ordered = conn.scalars(
            text('SELECT w FROM unnest(CAST(:written AS text[])) w ORDER BY w COLLATE "und-x-icu"'),
            {"written": list(written)},
        ).all()

    assert len(written) > 1
    assert written == ordered


# Pinned sessions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        select(Basket.id, LINES.c.household_id),
        select(Basket.id, LINES.c.household_id).join(LINES, LINES.c.basket_id == Basket.id),
        select(Basket.id, select(func.count()).select_from(LINES).scalar_subquery()),
        select(aliased(Basket, select(BASKETS).subquery()).household_id),
        select(Basket).from_statement(select(BASKETS)),
        union_all(select(Basket.household_id), select(LINES.c.household_id)),
        select(BASKETS).where(BASKETS.c.household_id == twin(7)),
        delete(BASKETS).where(BASKETS.c.household_id == twin(7)),
        update(Basket).values(cents=select(func.count()).select_from(LINES).scalar_subquery()),
    ],
)
def test_a_pinned_session_shows_no_other_key_through_a_table(
    cluster: ShardCluster, statement: Executable
) -> None:
    with cluster.on(households, household_id=7) as session, pytest.raises(ScatterRefusedError):
        session.execute(statement)


def test_a_pinned_session_updates_no_row_of_another_key(cluster: ShardCluster) -> None:
    before = everything(cluster)

    with cluster.on(households, household_id=7) as session, pytest.raises(ScatterRefusedError):
        session.execute(update(Basket), [{**ROW, "household_id": twin(7)}])

    assert everything(cluster) == before


@pytest.mark.parametrize(
    "write",
    [
        lambda session: session.bulk_save_objects([Basket(household_id=LOST, id=1)]),
        lambda session: session.bulk_insert_mappings(Basket, [{"household_id": LOST, "id": 1}]),
        lambda session: session.bulk_update_mappings(Basket, [{**ROW, "household_id": twin(7)}]),
    ],
)
def test_bulk_writes_past_the_checks_are_refused(
    cluster: ShardCluster, write: Callable[[Session], None]
) -> None:
    for session in (cluster.session(), cluster.on(households, household_id=7)):
        with session, pytest.raises(UnroutableStatementError):
            write(session)


def test_a_pinned_session_still_joins_and_takes_text(cluster: ShardCluster) -> None:
    loose = select(Basket.household_id, Line.household_id).outerjoin(
        Line, Line.basket_id == Basket.id
    )
    with_product = select(Basket.id).outerjoin(Product, Product.id == Basket.id)
    counted = select(func.count()).select_from(Line).scalar_subquery()

    with cluster.on(households, household_id=7) as session:
        assert session.execute(loose).all() == [(7, 7)]
        assert session.scalars(with_product.where(text("cents = 70"))).all() == [1]
        changed = update(Basket).values(cents=counted).returning(Basket.id)
        assert len(session.execute(changed).all()) == 1
        assert session.scalars(select(Basket.cents)).all() == [1]
        session.execute(update(Basket), [ROW])
        assert session.scalars(select(Basket.cents)).all() == [5]
