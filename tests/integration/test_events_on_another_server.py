"""Read models on one server, the events they follow on another."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, func, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns import DataLayer
from datapatterns.cqrs import Answer, Projection, Projections, Token, on
from datapatterns.cqrs.schema import projection_tables
from datapatterns.errors import (
    CheckpointError,
    ForeignTokenError,
    LogChangedError,
    ProjectionDefinitionError,
    ReadModelBehindError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.failpoints import armed
from datapatterns.testing import Databases, ManualClock
from datapatterns.transactions import fresh_reads
from tests.fixtures.read_models import (
    Dashboard,
    DoubledSales,
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
AN_HOUR_AGO = (
    "UPDATE datapatterns.projection_followed_log SET seen_at = seen_at - interval '1 hour',"
    " caught_up_at = caught_up_at - interval '1 hour'"
)


class HereBase(DeclarativeBase):
    pass


class Here(HereBase):
    __tablename__ = "sales_here"
    product: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int] = mapped_column(default=0)


@pytest.fixture
def events(databases: Databases) -> Iterator[Engine]:
    """Where the events are; ``engine`` is where the read models are."""
    with databases.lend() as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def projections(events: Engine, engine: Engine) -> Projections:
    create_tables(engine)
    return Projections(STORE, events_from=events)


def scanned(count: int) -> list[object]:
    return [ItemScanned(f"p{number % 3}", number) for number in range(count)]


def quantities(conn: Connection) -> int:
    return conn.execute(select(func.coalesce(func.sum(ProductSales.quantity), 0))).scalar_one()


def written(events: Engine, projections: Projections, count: int) -> Token:
    position = append_all(events, STORE, scanned(count))
    with events.connect() as conn:
        return projections.token(conn, position)


def test_effects_and_checkpoint_are_together_and_the_events_are_not_there(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(10))

    progress = projections.catch_up(engine, SalesByProduct, page_events=4)

    assert (progress.events, progress.caught_up) == (10, True)
    assert sales(engine) == expected_sales((e, "1") for e in scanned(10))
    with events.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM datapatterns.projection")).scalar() == 0
    with engine.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM datapatterns.event")).scalar() == 0


def test_a_token_of_the_write_is_waited_for_without_asking_the_other_server(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    token = written(events, projections, 3)
    projections.catch_up(engine, SalesByProduct)
    readers = Projections(STORE)

    assert readers.wait(engine, SalesByProduct, token, timeout_seconds=0) == token.position
    answer = readers.query(engine, SalesByProduct, quantities, after=token)

    assert (answer.value, answer.token, answer.positions_behind) == (3, token, None)
    assert 0 <= answer.seconds_behind < 60
    later = written(events, projections, 1)
    with pytest.raises(ReadModelBehindError):
        readers.wait(engine, SalesByProduct, later, timeout_seconds=0)
    strange = Token(token.position, "00000000")
    with pytest.raises(ForeignTokenError):
        readers.wait(engine, SalesByProduct, strange, timeout_seconds=0)


def test_who_asked_before_there_was_anything_gets_the_answer_afterwards(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    token = written(events, projections, 3)
    readers = Projections(STORE)

    with pytest.raises(ReadModelBehindError):
        readers.wait(engine, SalesByProduct, token, timeout_seconds=0)
    projections.catch_up(engine, SalesByProduct)

    assert readers.wait(engine, SalesByProduct, token, timeout_seconds=0) == token.position


def test_two_logs_are_told_apart_on_one_server(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    class HereByProduct(Projection, into=Here, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: Here, _e: ItemScanned, _meta: RecordedEvent) -> None:
            row.quantity += 1

    HereBase.metadata.create_all(engine)
    theirs = written(events, projections, 3)
    here = Projections(STORE)
    position = append_all(engine, STORE, scanned(3))
    projections.catch_up(engine, SalesByProduct)
    here.catch_up(engine, HereByProduct)
    with engine.connect() as conn:
        ours = here.token(conn, position)

    assert here.wait(engine, HereByProduct, ours, timeout_seconds=0) == position
    assert here.wait(engine, SalesByProduct, theirs, timeout_seconds=0) == theirs.position
    for projection, foreign in ((HereByProduct, theirs), (SalesByProduct, ours)):
        with pytest.raises(ForeignTokenError):
            here.wait(engine, projection, foreign, timeout_seconds=0)
        with pytest.raises(ForeignTokenError):
            here.query(engine, projection, lambda _: None, after=foreign)


def test_readers_are_told_how_long_ago_it_showed_everything(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(6))
    projections.run(engine, SalesByProduct, page_events=2)

    never = projections.query(engine, SalesByProduct, quantities)
    projections.catch_up(engine, SalesByProduct)
    with engine.begin() as conn:
        conn.execute(text(AN_HOUR_AGO))
    long_ago = projections.query(engine, SalesByProduct, quantities)
    projections.run(engine, SalesByProduct)
    again = projections.query(engine, SalesByProduct, quantities)

    assert (never.positions_behind, never.seconds_behind) == (None, float("inf"))
    assert long_ago.seconds_behind > 3_600
    assert again.seconds_behind < 60


@pytest.mark.parametrize(
    ("projection", "failpoint"),
    [
        (SalesByProduct, "projection.page-applied"),
        (Dashboard, "redis-projection.page-read"),
    ],
    ids=["table", "redis"],
)
def test_a_page_is_as_old_as_the_look_that_began_it(
    events: Engine,
    engine: Engine,
    redis_client: Redis,
    projection: type[SalesByProduct] | type[Dashboard],
    failpoint: str,
) -> None:
    create_tables(engine)
    projections = Projections(STORE, redis=redis_client, events_from=events)
    append_all(events, STORE, scanned(6))
    projections.catch_up(engine, projection)
    append_all(events, STORE, scanned(1))
    followed = projection_tables("datapatterns").followed
    on_the_way = []

    def look() -> None:
        with engine.connect() as conn:
            on_the_way.append(conn.execute(select(func.clock_timestamp())).scalar_one())

    with armed(failpoint, look):
        projections.catch_up(engine, projection)

    with engine.connect() as conn:
        noted = conn.execute(select(followed.c.caught_up_at)).scalar_one()
    assert noted < on_the_way[0]  # whoever wrote since is not in it


def test_before_its_first_page_nobody_knows_how_old_it_is(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(2))

    def ask() -> None:
        assert_unknown_age(engine, projections)

    with armed("projection.lease-claimed", ask):
        projections.run(engine, SalesByProduct)
    answer = projections.query(engine, SalesByProduct, quantities, max_staleness_seconds=3_600)

    assert answer.value == 2


def test_before_the_first_page_of_a_worker_nobody_knows_how_old_it_is(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(2))
    worker = replace(projections, declared=[SalesByProduct]).worker()

    with fresh_reads(engine) as conn:
        worker.beat(conn)
        assert_unknown_age(engine, projections)
        worker.turn(conn)
    answer = projections.query(engine, SalesByProduct, quantities, max_staleness_seconds=3_600)

    assert answer.value == 2


def assert_unknown_age(engine: Engine, projections: Projections) -> None:
    answer = projections.query(engine, SalesByProduct, quantities)
    assert (answer.value, answer.seconds_behind) == (0, float("inf"))
    with pytest.raises(ReadModelBehindError):
        projections.query(
            engine, SalesByProduct, quantities, max_staleness_seconds=3_600, timeout_seconds=0
        )


def test_a_log_that_is_still_empty_is_soon_known_to_show(
    engine: Engine, projections: Projections
) -> None:
    projections.catch_up(engine, SalesByProduct)

    fresh = projections.query(engine, SalesByProduct, quantities, max_staleness_seconds=60)

    assert fresh.position == 0


def test_who_wants_it_fresher_than_its_runner_has_looked_asks_again_now_and_then(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(1))
    projections.catch_up(engine, SalesByProduct)
    with engine.begin() as conn:
        conn.execute(text(AN_HOUR_AGO))
    clock = ManualClock()
    readers = replace(projections, clock=clock)

    with pytest.raises(ReadModelBehindError):
        readers.query(
            engine, SalesByProduct, quantities, max_staleness_seconds=60, timeout_seconds=0.2
        )

    assert clock.monotonic() == pytest.approx(0.2)


def test_a_task_waits_until_its_runner_has_looked(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(1))
    projections.catch_up(engine, SalesByProduct)
    with engine.begin() as conn:
        conn.execute(text(AN_HOUR_AGO))

    async def ask() -> Answer[int]:
        own = create_async_engine(engine.url)
        try:
            query = projections.query_async(
                own, SalesByProduct, quantities, max_staleness_seconds=60, timeout_seconds=60
            )
            runner = asyncio.to_thread(projections.run, engine, SalesByProduct)
            answer, _ = await asyncio.gather(query, runner)
        finally:
            await own.dispose()
        return answer

    answer = asyncio.run(ask())

    assert (answer.value, answer.is_stale) == (1, False)


def test_a_rebuild_of_what_was_never_run_claims_no_age(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(2))
    projections.rebuild(engine, SalesByProduct)

    rebuilt = projections.query(engine, SalesByProduct, quantities)
    projections.run(engine, SalesByProduct)
    looked = projections.query(engine, SalesByProduct, quantities)

    assert (rebuilt.value, rebuilt.seconds_behind) == (2, float("inf"))
    assert looked.seconds_behind < 60


def test_a_build_shows_the_log_of_when_it_began_and_does_not_say_that_this_is_all(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(2))
    projections.catch_up(engine, SalesByProduct)
    claims: list[object] = []

    def look() -> None:
        followed = projection_tables(STORE.schema).followed.c
        with engine.connect() as conn:
            asked = select(followed.position, followed.caught_up_at).where(followed.version == 2)
            claims.extend(tuple(row) for row in conn.execute(asked))

    with armed("build.finished", look):
        projections.rebuild(engine, DoubledSales)
    answer = projections.query(engine, DoubledSales, quantities)

    assert claims == [(2, None)]
    assert answer.seconds_behind < 60


def test_an_answer_claims_no_distance_that_it_cannot_know_but_the_status_counts_it(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(1))
    projections.catch_up(engine, SalesByProduct)
    append_all(events, STORE, scanned(7))  # and no runner looks

    by_reader = Projections(STORE).query(engine, SalesByProduct, quantities)
    by_runner = projections.query(engine, SalesByProduct, quantities)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        in_mine = projections.answer(conn, SalesByProduct, quantities)
    with engine.begin() as conn:
        (status,) = projections.status(conn)

    for answer in (by_reader, by_runner, in_mine):
        assert (answer.value, answer.positions_behind) == (1, None)
        assert answer.seconds_behind > 0
    assert status.positions_behind == 7


def test_status_and_verify_ask_both_servers(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(6))
    projections.run(engine, SalesByProduct, page_events=2)

    with engine.begin() as conn:
        (status,) = projections.status(conn)
    assert (status.position, status.positions_behind) == (2, 4)
    assert status.seconds_behind > 0
    projections.catch_up(engine, SalesByProduct)
    assert projections.verify(engine, SalesByProduct).matches
    with engine.begin() as conn:
        conn.execute(text("UPDATE product_sales SET quantity = 9 WHERE product = 'p1'"))
    assert [d.key for d in projections.verify(engine, SalesByProduct).differences] == [("p1",)]
    projections.rebuild(engine, SalesByProduct)
    assert projections.verify(engine, SalesByProduct).matches


def lose_the_end(events: Engine, after: int) -> None:
    """Leave the log as a restore of an older backup does."""
    with events.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER USER"))
        conn.execute(
            text("DELETE FROM datapatterns.event WHERE position > :after"), {"after": after}
        )
        conn.execute(text("ALTER TABLE datapatterns.event ENABLE TRIGGER USER"))
        conn.execute(text("ALTER TABLE datapatterns.event ENABLE ALWAYS TRIGGER raise_fence"))
        conn.execute(text("SELECT setval('datapatterns.event_position', :after)"), {"after": after})
        conn.execute(
            text(
                "UPDATE datapatterns.stream SET version ="
                " (SELECT count(*) FROM datapatterns.event WHERE stream_id = stream.id)"
            )
        )


def test_a_log_that_lost_its_end_and_grew_past_it_again_is_noticed(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(6))
    projections.catch_up(engine, SalesByProduct)
    before = sales(engine)
    lose_the_end(events, 4)
    append_all(events, STORE, scanned(9))

    for attempt in (projections.run, projections.catch_up):
        with pytest.raises(LogChangedError):
            attempt(engine, SalesByProduct)

    assert sales(engine) == before
    projections.rebuild(engine, SalesByProduct)
    projections.catch_up(engine, SalesByProduct)
    assert projections.verify(engine, SalesByProduct).matches


def test_a_log_that_lost_its_end_is_noticed_before_it_grows(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(6))
    projections.catch_up(engine, SalesByProduct)
    lose_the_end(events, 4)

    with pytest.raises(LogChangedError):
        projections.run(engine, SalesByProduct)
    with pytest.raises(CheckpointError, match="lies beyond the log"):
        projections.verify(engine, SalesByProduct)


def test_it_is_noticed_between_two_pages_of_one_lease(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(6))

    def lose() -> None:
        lose_the_end(events, 1)
        append_all(events, STORE, scanned(9))

    with armed("projection.page-committed", lose), pytest.raises(LogChangedError):
        projections.run(engine, SalesByProduct, pages_max=5, page_events=2)

    assert sum(quantity for quantity, _, _ in sales(engine).values()) == 2


def test_a_page_is_shown_only_after_a_flushed_commit_there(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(2))
    published: list[int] = []

    def look() -> None:
        # Who publishes the mark commits as with synchronous_commit on.
        with events.connect() as conn:
            published.append(
                conn.execute(text("SELECT position FROM datapatterns.mark")).scalar_one()
            )

    with armed("projection.page-applied", look):
        projections.run(engine, SalesByProduct)

    assert published == [2]


def test_a_server_of_events_that_is_away_takes_nothing_from_readers(
    events: Engine, engine: Engine
) -> None:
    create_tables(engine)
    append_all(events, STORE, scanned(2))
    Projections(STORE, events_from=events).catch_up(engine, SalesByProduct)
    nowhere = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    cut_off = Projections(STORE, events_from=nowhere)

    with pytest.raises(Exception, match=r"127\.0\.0\.1|refused"):
        cut_off.run(engine, SalesByProduct)

    assert cut_off.query(engine, SalesByProduct, quantities).value == 2


def test_what_needs_events_beside_it_is_refused(engine: Engine, projections: Projections) -> None:
    with pytest.raises(ProjectionDefinitionError, match="beside its events"):
        projections.make_inline(engine, SalesByProduct)


def test_a_dashboard_may_have_its_leases_on_either_server(
    events: Engine, engine: Engine, redis_client: Redis
) -> None:
    append_all(events, STORE, scanned(4))
    projections = Projections(STORE, redis=redis_client, events_from=events)

    projections.catch_up(engine, Dashboard, page_events=3)

    assert projections.verify(engine, Dashboard).matches
    assert sum(score for _, score in projections.view(Dashboard).top("best_sellers")) == 4


def test_a_token_of_the_write_is_known_to_readers_of_a_dashboard(
    events: Engine, engine: Engine, redis_client: Redis
) -> None:
    projections = Projections(STORE, redis=redis_client, events_from=events)
    token = written(events, projections, 4)
    projections.catch_up(engine, Dashboard)
    readers = Projections(STORE, redis=redis_client)

    assert readers.wait(engine, Dashboard, token, timeout_seconds=0) == token.position
    answer = readers.query_view(
        engine, Dashboard, lambda view: view.top("best_sellers"), after=token
    )
    assert (answer.token, answer.positions_behind) == (token, None)
    assert answer.seconds_behind < 60
    with pytest.raises(ForeignTokenError):
        readers.wait(engine, Dashboard, Token(token.position, "00000000"), timeout_seconds=0)


def test_a_layer_of_two_databases(
    events: Engine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)  # or it would be of a Redis, too
    create_tables(engine)
    with DataLayer(events.url, read_models_url=engine.url, projections=[SalesByProduct]) as layer:
        assert [report.name for report in layer.check()] == ["main", "read-models"]
        position = append_all(layer.engine, layer.events, scanned(2))
        layer.projections.catch_up(layer.read_engine, SalesByProduct)

        answer = layer.query(SalesByProduct, quantities, after=position)

        assert (answer.value, layer.wait(SalesByProduct, position, timeout_seconds=0)) == (2, 2)
        assert set(layer.migrations.status()) == {"main", "read-models"}


def test_a_version_that_is_built_again_knows_nothing_of_segments_that_it_had(
    events: Engine, engine: Engine, projections: Projections
) -> None:
    append_all(events, STORE, scanned(3))
    projections.catch_up(engine, SalesByProduct)
    projections.rebuild(engine, DoubledSales, promote=False)
    projections.split_into(engine, DoubledSales, 4)

    projections.rebuild(engine, DoubledSales)

    tables = projection_tables(STORE.schema)
    with engine.begin() as conn:
        followed = conn.scalars(
            select(tables.followed.c.shard).where(tables.followed.c.version == 2)
        )
        assert list(followed) == [0]
    assert projections.split_into(engine, DoubledSales, 4) == 4
    projections.catch_up(engine, DoubledSales)
    assert projections.verify(engine, DoubledSales).matches
