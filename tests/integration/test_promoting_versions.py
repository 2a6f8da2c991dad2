"""A version takes the place of another at once, or not at all; and what is bound to it moves."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, text

from datapatterns.cqrs import Projection, Projections, RedisChanges, RedisProjection, on
from datapatterns.cqrs.building import promoting
from datapatterns.cqrs.building.swapping import Swap
from datapatterns.cqrs.running.leasing import Lease, claim
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.errors import (
    LeaseLostError,
    MissingRightsError,
    ProjectionVersionError,
    PromotionRefusedError,
    PromotionTimeoutError,
    ReadModelInUseError,
    StandbyBehindError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.failpoints import armed
from datapatterns.testing.waiting import wait_until
from tests.fixtures.read_models import (
    DoubledSales,
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
    sales,
)

STORE = EventStore()
TABLES = projection_tables(STORE.schema)
PROJECTIONS = Projections(STORE)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    """Version 1 is live, version 2 ready, and both show all of the log."""
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 10)] * 5 + [ItemScanned("tea", 1)])
    PROJECTIONS.catch_up(engine, SalesByProduct)
    PROJECTIONS.rebuild(engine, DoubledSales, promote=False)
    return engine


def statuses(engine: Engine) -> dict[int, str]:
    with engine.begin() as conn:
        return {status.version: status.status for status in PROJECTIONS.status(conn)}


def run_sql(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in statements:
            conn.exec_driver_sql(statement, execution_options={"no_parameters": True})


def answer(engine: Engine, statement: str) -> object:
    with engine.begin() as conn:
        return conn.exec_driver_sql(statement).scalar()


def milk(engine: Engine) -> int:
    return sales(engine)["milk"][0]


@contextmanager
def another_session(engine: Engine) -> Iterator[Connection]:
    other = create_engine(engine.url)
    with other.connect() as conn:
        yield conn
    other.dispose()


def leased(engine: Engine, projection: type[Projection]) -> Lease:
    with engine.begin() as conn:
        register(conn, TABLES, projection, empty=False)
        (lease,) = claim(conn, TABLES, projection, owner="a runner", seconds=60)
    return lease


def test_a_version_is_promoted_and_put_back_and_promoted_again(shop: Engine) -> None:
    seen = [milk(shop)]
    assert PROJECTIONS.promote(shop, DoubledSales)
    seen.append(milk(shop))
    append_all(shop, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.catch_up(shop, DoubledSales)
    assert PROJECTIONS.rollback(shop, SalesByProduct) == 1
    seen.append(milk(shop))
    assert PROJECTIONS.promote(shop, DoubledSales)
    seen.append(milk(shop))

    assert seen == [5, 10, 6, 12]
    assert not PROJECTIONS.promote(shop, DoubledSales), "it is live already"
    assert statuses(shop) == {1: "standby", 2: "live"}


def test_what_the_live_version_has_shown_the_new_one_shows_before_it_is_read(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 10)] * 20)
    PROJECTIONS.catch_up(shop, SalesByProduct)

    PROJECTIONS.promote(shop, DoubledSales)

    assert milk(shop) == 50


def test_a_page_of_the_old_version_that_is_under_way_is_fenced(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 10)])
    old, new = leased(shop, SalesByProduct), leased(shop, DoubledSales)
    run_sql(shop, "UPDATE datapatterns.projection_shard SET owner = NULL, lease_until = NULL")
    PROJECTIONS.promote(shop, DoubledSales)
    before = sales(shop)

    with shop.connect() as conn:
        with pytest.raises(LeaseLostError):  # into the table of the other
            TableRunner(STORE, SalesByProduct, page_events=10).page(conn, old)
        with pytest.raises(LeaseLostError):  # into a table that is gone
            TableRunner(STORE, DoubledSales, page_events=10).page(conn, new)

    assert sales(shop) == before


def test_a_runner_that_has_claimed_on_the_old_state_is_refused(shop: Engine) -> None:
    """A claim that waits for the swap returns the state before it, with a valid epoch."""
    append_all(shop, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.promote(shop, DoubledSales)
    lease = leased(shop, SalesByProduct)
    stale = Lease(**{**{f: getattr(lease, f) for f in Lease.__slots__}, "status": "live"})

    with shop.connect() as conn, pytest.raises(LeaseLostError):
        TableRunner(STORE, SalesByProduct, page_events=10).page(conn, stale)


def test_a_lease_from_before_a_promotion_is_lost_even_if_all_is_as_it_was(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 10)])
    lease = leased(shop, SalesByProduct)
    run_sql(shop, "UPDATE datapatterns.projection_shard SET owner = NULL, lease_until = NULL")
    PROJECTIONS.promote(shop, DoubledSales)
    PROJECTIONS.rollback(shop, "sales_by_product", allow_older=True)

    with shop.connect() as conn, pytest.raises(LeaseLostError):
        TableRunner(STORE, SalesByProduct, page_events=10).page(conn, lease)


def test_runners_stop_at_the_barrier_and_no_longer(shop: Engine) -> None:
    seen: list[int] = []

    def run_both() -> None:
        append_all(shop, STORE, [ItemScanned("milk", 10)])
        for projection in (SalesByProduct, DoubledSales):
            progress = PROJECTIONS.run(shop, projection, pages_max=2)
            seen.append(progress.position)

    with armed("promote.barred", run_both):
        PROJECTIONS.promote(shop, DoubledSales)

    assert seen == [6, 7], "the live version waits at what it has shown, the new one need not"
    assert milk(shop) == 12
    assert PROJECTIONS.catch_up(shop, SalesByProduct).position == 7


def test_both_versions_of_a_projection_with_messages_stop_at_one_position(shop: Engine) -> None:
    class First(
        SalesByProduct, into=ProductSales, version=1, messages=True, name="sales_by_product"
    ):
        pass

    class Second(
        DoubledSales, into=ProductSales, version=2, messages=True, name="sales_by_product"
    ):
        pass

    positions: list[list[int]] = []

    def run_both() -> None:
        append_all(shop, STORE, [ItemScanned("milk", 10)])
        for projection in (First, Second):
            PROJECTIONS.run(shop, projection, pages_max=2)

    def look() -> None:
        with shop.begin() as conn:
            positions.append([status.position for status in PROJECTIONS.status(conn)])

    with armed("promote.barred", run_both), armed("promote.locked", look):
        PROJECTIONS.promote(shop, Second)

    assert positions == [[6, 6]]


def test_a_barrier_that_has_expired_is_noticed_and_set_again(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def move_on() -> None:
        attempts.append(1)
        if len(attempts) == 1:  # whoever promotes was paused for longer than the barrier stands
            run_sql(
                shop,
                "UPDATE datapatterns.projection_shard SET barrier_until = now() - '1s'::interval"
                " WHERE barrier IS NOT NULL",
            )
            append_all(shop, STORE, [ItemScanned("milk", 10)])
            PROJECTIONS.run(shop, SalesByProduct)

    reach = promoting.Promotion._reach  # noqa: SLF001 -- what happens after it

    def reach_then_pause(self: promoting.Promotion, *arguments: object) -> None:
        reach(self, *arguments)  # type: ignore[arg-type] # as they were given
        move_on()

    monkeypatch.setattr(promoting.Promotion, "_reach", reach_then_pause)
    PROJECTIONS.promote(shop, DoubledSales)

    assert len(attempts) == 2
    assert milk(shop) == 12


def test_without_the_second_look_readers_would_see_a_step_back(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test before."""
    reach = promoting.Promotion._reach  # noqa: SLF001 -- what happens after it

    def reach_then_pause(self: promoting.Promotion, *arguments: object) -> None:
        reach(self, *arguments)  # type: ignore[arg-type] # as they were given
        run_sql(
            shop, "UPDATE datapatterns.projection_shard SET barrier = NULL, barrier_until = NULL"
        )
        append_all(shop, STORE, [ItemScanned("milk", 10)])
        PROJECTIONS.run(shop, SalesByProduct)

    monkeypatch.setattr(promoting.Promotion, "_reach", reach_then_pause)
    monkeypatch.setattr(Swap, "_fence", lambda *_: None)
    PROJECTIONS.promote(shop, DoubledSales)

    with shop.begin() as conn:
        shown = {status.version: status.position for status in PROJECTIONS.status(conn)}
    assert shown == {1: 7, 2: 6}


# Who is in the way ----------------------------------------------------------------------------


def test_a_long_reader_is_waited_for_and_others_are_not_held_up(shop: Engine) -> None:
    with another_session(shop) as reader, ThreadPoolExecutor() as pool:
        reader.execute(text("SELECT count(*) FROM product_sales"))
        promotion = pool.submit(PROJECTIONS.promote, shop, DoubledSales)
        refused = threading.Event()
        wait_until(lambda: is_waited_for(shop), deadline_seconds=30)
        for _ in range(5):
            assert milk(shop) == 5
        assert not refused.is_set()
        reader.rollback()

        assert promotion.result(timeout=30)
    assert milk(shop) == 10


def is_waited_for(engine: Engine) -> bool:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
    return answer(engine, waiting) != 0


def test_who_reads_for_too_long_is_named(shop: Engine) -> None:
    with another_session(shop) as reader:
        reader.execute(text("SELECT count(*) FROM product_sales"))
        pid = reader.scalar(text("SELECT pg_backend_pid()"))

        with pytest.raises(PromotionTimeoutError) as late:
            PROJECTIONS.promote(shop, DoubledSales, timeout_seconds=0.5)

    assert late.value.pids == (pid,)
    assert statuses(shop) == {1: "live", 2: "ready"}
    assert barriers(shop) == 0
    assert milk(shop) == 5


def barriers(engine: Engine) -> object:
    return answer(
        engine, "SELECT count(*) FROM datapatterns.projection_shard WHERE barrier IS NOT NULL"
    )


def test_a_snapshot_from_before_the_build_is_waited_for(engine: Engine) -> None:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.catch_up(engine, SalesByProduct)
    with another_session(engine) as reader:
        reader.execution_options(isolation_level="REPEATABLE READ")
        reader.execute(text("SELECT 1"))  # has its snapshot, and has not read the table
        pid = reader.scalar(text("SELECT pg_backend_pid()"))
        PROJECTIONS.rebuild(engine, DoubledSales, promote=False)

        with pytest.raises(PromotionTimeoutError, match="snapshot") as late:
            PROJECTIONS.promote(engine, DoubledSales, timeout_seconds=0.2)
        counted = reader.scalar(text("SELECT count(*) FROM product_sales"))

    assert late.value.pids == (pid,)
    assert counted == 1
    assert PROJECTIONS.promote(engine, DoubledSales)


def test_a_snapshot_that_comes_behind_the_barrier_is_waited_for_without_it(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promoting, "BARRIER_SECONDS", 0.5)
    held: list[object] = []
    with another_session(shop) as reader, ThreadPoolExecutor() as pool:
        reader.execution_options(isolation_level="REPEATABLE READ")

        def begin_to_read() -> None:
            held.append(barriers(shop))
            if len(held) == 1:
                reader.execute(text("SELECT 1"))
                pool.submit(end_when_lifted)

        def end_when_lifted() -> None:
            wait_until(lambda: barriers(shop) == 0, deadline_seconds=30)
            reader.rollback()

        with armed("promote.barred", begin_to_read, visit=None):
            assert PROJECTIONS.promote(shop, DoubledSales)

    assert held == [1, 1]
    assert milk(shop) == 10


def test_without_waiting_for_it_such_a_reader_would_see_an_empty_table(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test before."""
    monkeypatch.setattr(promoting, "read_holders", lambda _: frozenset())
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.catch_up(engine, SalesByProduct)
    with another_session(engine) as reader:
        reader.execution_options(isolation_level="REPEATABLE READ")
        reader.execute(text("SELECT 1"))
        PROJECTIONS.rebuild(engine, DoubledSales)

        assert reader.scalar(text("SELECT count(*) FROM product_sales")) == 0


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("CREATE VIEW totals AS SELECT sum(cents) FROM product_sales", "view totals"),
        (
            "CREATE MATERIALIZED VIEW totals AS SELECT sum(cents) FROM product_sales",
            "materialized view totals",
        ),
        (
            "CREATE TABLE note (product varchar(20) REFERENCES product_sales)",
            "foreign key note_product_fkey of note",
        ),
        (
            "CREATE FUNCTION of_row(product_sales) RETURNS int LANGUAGE sql AS 'SELECT 1'",
            r"function of_row\(product_sales\)",
        ),
        ("CREATE TABLE archive (sold product_sales)", "column sold of table archive"),
        ("CREATE TABLE part () INHERITS (product_sales)", "inherits|table part"),
        (
            "CREATE RULE quiet AS ON DELETE TO product_sales DO INSTEAD NOTHING",
            "rule quiet on product_sales",
        ),
    ],
)
def test_what_would_stay_with_the_old_table_is_named(shop: Engine, made: str, named: str) -> None:
    run_sql(shop, made)

    with pytest.raises(ReadModelInUseError, match=named):
        PROJECTIONS.promote(shop, DoubledSales)

    assert statuses(shop) == {1: "live", 2: "ready"}


def test_what_is_made_at_the_last_moment_is_noticed(shop: Engine) -> None:
    def make() -> None:
        run_sql(shop, "CREATE VIEW totals AS SELECT sum(cents) FROM product_sales")

    with armed("promote.barred", make), pytest.raises(ReadModelInUseError, match="view totals"):
        PROJECTIONS.promote(shop, DoubledSales)

    assert barriers(shop) == 0


# What goes along ------------------------------------------------------------------------------


@pytest.fixture
def roles(shop: Engine) -> Iterator[None]:
    run_sql(shop, "CREATE ROLE h7_reader", "CREATE ROLE h7_clerk LOGIN PASSWORD 'x'")
    yield
    run_sql(shop, "DROP OWNED BY h7_reader, h7_clerk", "DROP ROLE h7_reader, h7_clerk")


@pytest.mark.skipif("LEAST_RIGHTS" in os.environ, reason="no policy shows the worker its rows")
@pytest.mark.usefixtures("roles")
def test_all_that_is_bound_to_a_table_goes_along_and_comes_back(shop: Engine) -> None:
    run_sql(
        shop,
        "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.last_basket ="
        " NEW.last_basket || '!'; RETURN NEW; END$$",
        "CREATE TRIGGER stamped BEFORE UPDATE ON product_sales FOR EACH ROW"
        " WHEN (NEW.product = 'milk') EXECUTE FUNCTION stamp()",
        'CREATE TRIGGER "odd % name" BEFORE DELETE ON product_sales EXECUTE FUNCTION stamp()',
        'ALTER TABLE product_sales DISABLE TRIGGER "odd % name"',
        "GRANT SELECT ON product_sales TO h7_reader",
        "GRANT UPDATE (cents) ON product_sales TO h7_clerk WITH GRANT OPTION",
        "ALTER TABLE product_sales ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY no_tea ON product_sales FOR SELECT TO h7_reader USING (product <> 'tea')",
        "CREATE POLICY cheap ON product_sales AS RESTRICTIVE TO PUBLIC USING (EXISTS"
        " (SELECT 1 FROM pg_class c WHERE c.relname::text <> product_sales.product::text))",
        "COMMENT ON TABLE product_sales IS 'it''s 100% ours'",
        "COMMENT ON COLUMN product_sales.cents IS 'in cents'",
        "COMMENT ON CONSTRAINT not_negative ON product_sales IS 'no debts'",
        "COMMENT ON POLICY no_tea ON product_sales IS 'coffee only'",
        "COMMENT ON TRIGGER stamped ON product_sales IS 'milk only'",
        'CREATE STATISTICS "odd % : one" (ndistinct, mcv) ON product, (lower(last_basket)), cents'
        " FROM product_sales",
        "CREATE STATISTICS of_thirds ON (quantity % 3) FROM product_sales",
        "ALTER TABLE product_sales SET (fillfactor = 70, toast.autovacuum_enabled = false)",
        "ALTER TABLE product_sales ALTER last_basket SET STORAGE EXTERNAL",
        "ALTER TABLE product_sales ALTER cents SET STATISTICS 500",
        "CREATE INDEX by_quantity ON product_sales (quantity DESC) WHERE cents > 5",
        "CREATE UNIQUE INDEX told_apart ON product_sales (product, lower(last_basket))",
        "ALTER TABLE product_sales REPLICA IDENTITY FULL",
        "CREATE PUBLICATION outside FOR TABLE product_sales",
    )
    before = looks(shop)
    PROJECTIONS.rebuild(shop, DoubledSales)
    promoted = looks(shop)
    PROJECTIONS.rollback(shop, SalesByProduct)
    back = looks(shop)
    aside = answer(shop, "SELECT count(*) FROM pg_publication_rel")
    append_all(shop, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.catch_up(shop, SalesByProduct)
    PROJECTIONS.catch_up(shop, DoubledSales)

    assert promoted == before
    assert back == before
    assert aside == 1, "what is not live is not published"
    assert sales(shop)["milk"] == (6, 60, "1!")
    assert answer(shop, "SELECT last_basket FROM product_sales__v2 WHERE product = 'milk'") == "1"


def looks(engine: Engine) -> dict[str, object]:
    """Return what is bound to the live table."""
    statements = {
        "rights": "SELECT relacl::text FROM pg_class WHERE oid = to_regclass('product_sales')",
        "columns": "SELECT attname, attacl::text, attstorage, attstattarget FROM pg_attribute"
        " WHERE attrelid = to_regclass('product_sales') AND attnum > 0 ORDER BY 1",
        "security": "SELECT relrowsecurity, relforcerowsecurity, relreplident, reloptions,"
        " (SELECT t.reloptions FROM pg_class t WHERE t.oid = c.reltoastrelid)"
        " FROM pg_class c WHERE oid = to_regclass('product_sales')",
        "policies": "SELECT * FROM pg_policies WHERE tablename = 'product_sales' ORDER BY 3",
        "triggers": "SELECT pg_get_triggerdef(oid), tgenabled FROM pg_trigger"
        " WHERE tgrelid = to_regclass('product_sales') ORDER BY 1",
        "indexes": "SELECT pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = to_regclass('product_sales') ORDER BY 1",
        "comments": "SELECT objsubid, description FROM pg_description"
        " WHERE objoid = to_regclass('product_sales') OR objoid IN"
        " (SELECT oid FROM pg_constraint WHERE conrelid = to_regclass('product_sales')"
        " UNION ALL SELECT oid FROM pg_trigger WHERE tgrelid = to_regclass('product_sales')"
        " UNION ALL SELECT oid FROM pg_policy WHERE polrelid = to_regclass('product_sales'))"
        " ORDER BY 1, 2",
        "statistics": "SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext"
        " WHERE stxrelid = to_regclass('product_sales') ORDER BY 1",
        "publications": "SELECT * FROM pg_publication_tables",
    }
    with engine.begin() as conn:
        return {
            what: [
                tuple(map(str, row)) for row in conn.exec_driver_sql(statement.replace("%", "%%"))
            ]
            for what, statement in statements.items()
        }


@pytest.mark.skipif("LEAST_RIGHTS" in os.environ, reason="it takes on a role of its own")
@pytest.mark.usefixtures("roles")
def test_a_table_that_is_not_live_is_kept_from_whom_the_live_one_is(shop: Engine) -> None:
    run_sql(
        shop,
        "GRANT SELECT ON product_sales TO h7_reader",
        "ALTER TABLE product_sales ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY no_tea ON product_sales TO h7_reader USING (product <> 'tea')",
    )
    PROJECTIONS.rebuild(shop, DoubledSales, promote=False)

    with shop.begin() as conn:
        conn.exec_driver_sql("SET LOCAL ROLE h7_reader")
        seen = conn.exec_driver_sql("SELECT product FROM product_sales__v2").scalars().all()

    assert seen == ["milk"]


@pytest.mark.usefixtures("roles")
def test_rights_that_were_granted_on_go_along_as_the_owners(shop: Engine) -> None:
    run_sql(
        shop,
        "GRANT SELECT, UPDATE (cents) ON product_sales TO h7_clerk WITH GRANT OPTION",
        "SET ROLE h7_clerk; GRANT SELECT, UPDATE (cents) ON product_sales TO h7_reader; RESET ROLE",
    )
    may = (
        "SELECT has_table_privilege('h7_reader', 'product_sales', 'SELECT')"
        " AND has_column_privilege('h7_reader', 'product_sales', 'cents', 'UPDATE')"
    )
    readable = []
    for _ in range(2):
        PROJECTIONS.promote(shop, DoubledSales)
        readable.append(answer(shop, may))
        PROJECTIONS.rollback(shop, SalesByProduct)
        readable.append(answer(shop, may))

    assert readable == [True] * 4


@pytest.mark.usefixtures("roles")
def test_a_role_that_does_not_own_the_tables_is_told_so(shop: Engine) -> None:
    run_sql(
        shop,
        "GRANT pg_read_all_stats TO h7_clerk",
        "GRANT USAGE ON SCHEMA datapatterns TO h7_clerk",
        "GRANT ALL ON ALL TABLES IN SCHEMA datapatterns, public TO h7_clerk",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA datapatterns TO h7_clerk",
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA datapatterns TO h7_clerk",
    )
    clerk = create_engine(shop.url.set(username="h7_clerk", password="x"))

    with pytest.raises(MissingRightsError):
        PROJECTIONS.promote(clerk, DoubledSales)
    with pytest.raises(MissingRightsError):
        PROJECTIONS.retire(clerk, DoubledSales)
    clerk.dispose()

    assert statuses(shop) == {1: "live", 2: "ready"}
    assert barriers(shop) == 0


# Back, and away -------------------------------------------------------------------------------


def test_a_standby_that_is_older_than_what_was_shown_is_refused_unless_allowed(
    shop: Engine,
) -> None:
    PROJECTIONS.promote(shop, DoubledSales)
    append_all(shop, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.catch_up(shop, DoubledSales)

    with pytest.raises(StandbyBehindError) as behind:
        PROJECTIONS.rollback(shop, "sales_by_product", timeout_seconds=0.2)
    shown = milk(shop)
    PROJECTIONS.rollback(shop, "sales_by_product", allow_older=True)

    assert (behind.value.position, behind.value.shown) == (6, 7)
    assert (shown, milk(shop)) == (12, 5)
    PROJECTIONS.catch_up(shop, SalesByProduct)
    assert milk(shop) == 6


def test_what_is_declared_is_moved_on_when_it_is_put_back_by_name(shop: Engine) -> None:
    PROJECTIONS.promote(shop, DoubledSales)
    append_all(shop, STORE, [ItemScanned("milk", 10)])
    PROJECTIONS.catch_up(shop, DoubledSales)

    Projections(STORE, declared=[SalesByProduct]).rollback(shop, "sales_by_product")

    assert milk(shop) == 6


def test_a_version_that_is_retired_leaves_nothing(shop: Engine) -> None:
    with pytest.raises(PromotionRefusedError, match="promote another"):
        PROJECTIONS.retire(shop, SalesByProduct)
    PROJECTIONS.promote(shop, DoubledSales)

    assert PROJECTIONS.retire(shop, "sales_by_product", 1) == ["public.product_sales__v1"]
    assert PROJECTIONS.retire(shop, SalesByProduct) == []

    assert statuses(shop) == {1: "retired", 2: "live"}
    assert answer(shop, "SELECT to_regclass('product_sales__v1')") is None
    with pytest.raises(ProjectionVersionError):
        PROJECTIONS.run(shop, SalesByProduct)
    with pytest.raises(PromotionRefusedError, match="there is none"):
        PROJECTIONS.rollback(shop, DoubledSales)
    PROJECTIONS.rebuild(shop, SalesByProduct)  # and it can come back
    assert milk(shop) == 5


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda shop: PROJECTIONS.promote(shop, NeverBuilt), "was never built"),
        (lambda shop: PROJECTIONS.rollback(shop, SalesByProduct), "there is none"),
        (lambda shop: PROJECTIONS.rollback(shop, SalesByProduct, version=2), "not live before"),
        (lambda shop: PROJECTIONS.retire(shop, NeverBuilt), "there is none"),
    ],
)
def test_what_cannot_be_done_is_said(
    shop: Engine, how: Callable[[Engine], object], told: str
) -> None:
    with pytest.raises(PromotionRefusedError, match=told):
        how(shop)


class NeverBuilt(SalesByProduct, into=ProductSales, version=7, name="sales_by_product"):
    pass


# In Redis -------------------------------------------------------------------------------------


class First(RedisProjection, version=1, name="board"):
    @on(ItemScanned)
    def _(self, changes: RedisChanges, e: ItemScanned, _meta: RecordedEvent) -> None:
        changes.increment("cents", e.product, e.cents)


class Second(First, version=2, name="board"):
    pass


@pytest.mark.redis
def test_a_version_in_redis_is_put_back_and_retired_by_the_same_calls(
    shop: Engine, redis_client: Redis
) -> None:
    projections = Projections(STORE, redis=redis_client)
    projections.catch_up(shop, First)
    projections.catch_up(shop, Second)
    append_all(shop, STORE, [ItemScanned("milk", 10)])
    projections.catch_up(shop, Second)

    def boards() -> dict[int, str]:
        with shop.begin() as conn:
            return {s.version: s.status for s in projections.status(conn) if s.name == "board"}

    assert boards() == {1: "standby", 2: "live"}
    assert projections.rollback(shop, First) == 1
    assert boards() == {1: "live", 2: "standby"}
    assert projections.view(First).hash("cents") == {"milk": "60", "tea": "1"}
    with pytest.raises(PromotionRefusedError, match="class"):
        projections.retire(shop, "board", 2)
    assert projections.promote(shop, Second)
    projections.retire(shop, First)

    assert boards() == {1: "retired", 2: "live"}
    left = redis_client.keys("*:board:1}*") + redis_client.keys("*board*1*")
    assert len(left) <= 1, "but what refuses its last runners"
