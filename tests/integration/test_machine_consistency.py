"""Random writers beside refreshes and evictions: wrong designs are found, ours stay right."""

import json
from collections.abc import Hashable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from redis import Redis
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Table,
    create_engine,
    delete,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cache_aside import Cache, CachePolicy
from datapatterns.index_table import IndexTable
from datapatterns.materialized_view import MaterializedView
from datapatterns.testing import (
    Databases,
    DerivedCache,
    DerivedTable,
    Explorer,
    SpecError,
    consistency_machine,
)

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(900)]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    grp: Mapped[str | None]
    amount: Mapped[int | None]


class Total(Base):
    __tablename__ = "total"
    __mapper_args__ = {"primary_key": ["grp"]}  # noqa: RUF012 -- as SQLAlchemy wants it
    grp: Mapped[str | None]
    items: Mapped[int]


class ItemByGroup(Base):
    __tablename__ = "item_by_group"
    grp: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True)


items = st.fixed_dictionaries(
    {
        "id": st.integers(1, 3),
        "grp": st.none() | st.sampled_from("ab"),
        "amount": st.none() | st.integers(-5, 5),
    }
)
ITEMS = {Item: items}
FEW_ITEMS = {
    Item: st.fixed_dictionaries(
        {"id": st.integers(1, 2), "grp": st.just("a"), "amount": st.integers(0, 9)}
    )
}
VIEW = MaterializedView(
    "totals",
    select(Item.grp, func.count().label("items"), func.sum(Item.amount).label("amount")).group_by(
        Item.grp
    ),
)
BY_GROUP = IndexTable("by_group", on=[Item.grp], include=[Item.amount])
BY_AMOUNT = IndexTable("by_amount", on=[Item.amount], unique=True)
BY_GROUP_LATER = IndexTable("by_group_later", on=[Item.grp], include=[Item.amount], mode="async")


@pytest.fixture
def url(databases: Databases) -> Iterator[URL]:
    with databases.lend() as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        yield url
        engine.dispose()


@pytest.fixture
def explorer(url: URL, redis_url: str) -> Iterator[Explorer]:
    with Explorer(url, redis_url) as explorer:
        yield explorer


def run(machine: type[RuleBasedStateMachine]) -> None:
    everyday = settings.get_profile("dev").max_examples
    effort = settings().max_examples / everyday
    run_state_machine_as_test(
        machine,
        settings=settings(
            machine.TestCase.settings,
            max_examples=round(6 * effort),
            stateful_step_count=5,
            database=None,
        ),
    )


def found(machine: type[RuleBasedStateMachine], *, shrunk: bool = False) -> str:
    phases = [Phase.generate, Phase.shrink] if shrunk else [Phase.generate]
    with pytest.raises(SpecError) as failing:
        run_state_machine_as_test(
            machine,
            settings=settings(
                machine.TestCase.settings, max_examples=300, derandomize=True, phases=phases
            ),
        )
    return str(failing.value)


def test_a_materialized_view_stays_what_its_query_gives(explorer: Explorer, url: URL) -> None:
    engine = create_engine(url)
    with engine.begin() as conn:
        VIEW.create(conn)
    with engine.begin() as conn:
        VIEW.populate(conn)
    engine.dispose()

    run(consistency_machine(VIEW, ITEMS, explorer=explorer))


@pytest.mark.parametrize(
    "index", [BY_GROUP, BY_AMOUNT, BY_GROUP_LATER], ids=lambda index: index.name
)
def test_an_index_table_stays_what_its_rows_say(
    explorer: Explorer, url: URL, index: IndexTable
) -> None:
    engine = create_engine(url)
    with engine.begin() as conn:
        index.create(conn)
    with engine.begin() as conn:
        index.backfill(conn)
    with engine.begin() as conn:
        index.activate(conn)
    engine.dispose()

    run(consistency_machine(index, ITEMS, explorer=explorer))


TRIGGER = """
CREATE FUNCTION keep_total() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        UPDATE total SET items = items - 1 WHERE grp {same} OLD.grp;
        DELETE FROM total WHERE items = 0;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        {add}
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER keep_total AFTER INSERT OR UPDATE OR DELETE ON item
    FOR EACH ROW EXECUTE FUNCTION keep_total();
"""
LOOK_THEN_INSERT = """
        UPDATE total SET items = items + 1 WHERE grp {same} NEW.grp;
        IF NOT FOUND THEN INSERT INTO total VALUES (NEW.grp, 1); END IF;
"""
UPSERT = """
        INSERT INTO total VALUES (NEW.grp, 1)
        ON CONFLICT (grp) DO UPDATE SET items = total.items + 1;
"""
TOTALS = DerivedTable(
    Total.__table__, select(Item.grp, func.count().label("items")).group_by(Item.grp)
)


def keep_totals(url: URL, *, same: str, add: str, unique: bool) -> None:
    engine = create_engine(url)
    with engine.begin() as conn:
        if unique:
            conn.execute(text("CREATE UNIQUE INDEX ON total (grp) NULLS NOT DISTINCT"))
        conn.execute(text(TRIGGER.format(same=same, add=add.format(same=same))))
    engine.dispose()


def test_a_trigger_that_forgets_groups_of_null_is_found(explorer: Explorer, url: URL) -> None:
    keep_totals(url, same="=", add=LOOK_THEN_INSERT, unique=False)

    message = found(consistency_machine(TOTALS, ITEMS, explorer=explorer), shrunk=True)

    assert message.startswith("it is not what its rows say\n")
    assert ": (None, " in message
    assert "[put item {'id': 1, 'grp': None, 'amount': None}" in message
    assert message.count(" item {") <= 3  # shrunk: no statement that is not needed


def test_a_trigger_that_looks_before_it_inserts_is_found_by_two_writers(
    explorer: Explorer, url: URL
) -> None:
    keep_totals(url, same="IS NOT DISTINCT FROM", add=LOOK_THEN_INSERT, unique=False)

    message = found(consistency_machine(TOTALS, FEW_ITEMS, explorer=explorer))

    assert "writer2" in message  # one alone does nothing wrong
    # Two rows of one group differ from one either way; which is found first is up to chance.
    assert "surplus: " in message or "missing: " in message


def test_a_trigger_that_is_right_passes(explorer: Explorer, url: URL) -> None:
    keep_totals(url, same="IS NOT DISTINCT FROM", add=UPSERT, unique=True)

    run(consistency_machine(TOTALS, ITEMS, explorer=explorer))


def test_a_table_that_nobody_keeps_lacks_rows(explorer: Explorer) -> None:
    message = found(consistency_machine(TOTALS, FEW_ITEMS, explorer=explorer))

    assert message.startswith("it is not what its rows say\nmissing: ('a', ")


def test_a_refresh_that_fails_is_told_with_its_story(explorer: Explorer) -> None:
    refreshed = DerivedTable(
        TOTALS.table, TOTALS.query, lambda conn: conn.execute(text("SELECT 1"))
    )
    machine = consistency_machine(refreshed, FEW_ITEMS, explorer=explorer)()
    failing = DerivedTable(TOTALS.table, TOTALS.query, lambda conn: conn.execute(text("SELECT x")))
    machine.subject = failing

    with pytest.raises(SpecError, match=r"(?s)refresh raised ProgrammingError.*SELECT x"):
        machine.round([], ["refresh"])


def index_by_hand(conn: Connection, key: Hashable, *, forget_the_old: bool) -> None:
    if forget_the_old:
        conn.execute(delete(ItemByGroup).where(ItemByGroup.id == key))
    now = select(Item.grp, Item.id).where(Item.id == key, Item.grp.is_not(None))
    conn.execute(insert(ItemByGroup).from_select(["grp", "id"], now).on_conflict_do_nothing())


@pytest.mark.parametrize("forget_the_old", [False, True])
def test_an_index_kept_by_the_application_must_delete_what_it_was(
    explorer: Explorer, *, forget_the_old: bool
) -> None:
    def after(conn: Connection, _table: Table, key: Hashable) -> None:
        index_by_hand(conn, key, forget_the_old=forget_the_old)

    index = DerivedTable(ItemByGroup, select(Item.grp, Item.id).where(Item.grp.is_not(None)))
    machine = consistency_machine(index, ITEMS, explorer=explorer, after=after)

    if forget_the_old:
        run(machine)
    else:
        assert "\nsurplus: (" in found(machine)


def load(conn: Connection, key: int) -> list[Any] | None:
    row = conn.execute(select(Item.grp, Item.amount).where(Item.id == key)).one_or_none()
    return row and list(row)


class NaiveCache:
    """SET after a miss, DEL after the commit: what everybody writes first."""

    def __init__(self, client: Redis, engine: Engine) -> None:
        self._client, self._engine = client, engine

    def read(self, key: int) -> Any:  # noqa: ANN401 -- from JSON
        cached = self._client.get(f"item:{key}")
        if cached is not None:
            assert isinstance(cached, bytes)
            return json.loads(cached)
        with self._engine.connect() as conn:
            value = load(conn, key)
        self._client.set(f"item:{key}", json.dumps(value))
        return value

    @contextmanager
    def writes(self) -> Iterator[Connection]:
        with self._engine.begin() as conn:
            written: set[Hashable] = set()
            conn.info["written"] = written
            yield conn
        for key in sorted(written, key=repr):
            self._client.delete(f"item:{key}")

    def note(self, conn: Connection, _table: Table, key: Hashable) -> None:
        conn.info["written"].add(key)


@pytest.mark.redis
def test_a_cache_that_sets_after_a_miss_and_deletes_after_the_commit_is_found(
    explorer: Explorer,
) -> None:
    engine, client = explorer.engine(), explorer.redis()
    naive = NaiveCache(client, engine)
    machine = consistency_machine(
        DerivedCache(naive.read, load, [1, 2], client),
        FEW_ITEMS,
        explorer=explorer,
        engine=engine,
        begin=naive.writes,
        after=naive.note,
    )

    message = found(machine)

    assert "is read as" in message
    assert "redis SET" in message


@pytest.mark.redis
def test_our_cache_never_keeps_what_is_not_in_the_database(explorer: Explorer) -> None:
    engine, client = explorer.engine(), explorer.redis()
    policy = CachePolicy(redis_timeout_seconds=5, vouched_seconds=60)
    with closing(Cache(client, engine, name="item", policy=policy)) as cache:
        item = cache.cached(load)

        def after(conn: Connection, _table: Table, key: Hashable) -> None:
            assert isinstance(key, int)
            item.invalidate_in(conn, key)

        run(
            consistency_machine(
                DerivedCache.of(item, [1, 2], client, cache.relay),
                ITEMS,
                explorer=explorer,
                engine=engine,
                begin=cache.writes,
                after=after,
            )
        )
