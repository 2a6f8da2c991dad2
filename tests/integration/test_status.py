"""`DataLayer.status` and `datapatterns status`: how everything stands, whatever part is away."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import URL, Connection, Engine, text

from datapatterns import DataLayer
from datapatterns.errors import ProjectionStoppedError
from datapatterns.index_table import IndexTable
from datapatterns.materialized_view import MaterializedView
from datapatterns.overview import Concern, Standing
from datapatterns.sharding import ShardCluster
from tests.fixtures.commands import Run, rows
from tests.fixtures.empty_database import shown
from tests.fixtures.index_tables import build, customer
from tests.fixtures.read_models import Base, ItemScanned, SalesByProduct, append, append_all
from tests.fixtures.shard_model import households
from tests.fixtures.view_tables import create_tables, weekly_sales
from tests.fixtures.view_tables import run as execute

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

WEEKLY = MaterializedView("weekly_sales", weekly_sales())
BY_EMAIL = IndexTable("customer_by_email", on=[customer.c.email], unique=True)
NOWHERE = "postgresql://[::1]:1/x"
APP = """
from datapatterns import DataLayer
from tests.integration.test_status import BY_EMAIL, SalesByProduct, WEEKLY

layer = DataLayer(
    {url!r}, redis_url={redis!r}, projections=[SalesByProduct], views=[WEEKLY], indexes=[BY_EMAIL]
)
"""


@pytest.fixture
def layer(
    engine: Engine, database_url: URL, redis_url: str, redis_client: Redis
) -> Iterator[DataLayer]:
    """An application of which everything is as it should be."""
    assert redis_client.dbsize() == 0
    Base.metadata.create_all(engine)
    customer.create(engine)
    with engine.begin() as conn:
        create_tables(conn)
        WEEKLY.create(conn)
    build(engine, BY_EMAIL)
    with closing(opened(database_url, redis_url)) as layer:
        layer.views.populate(engine)
        append_all(engine, layer.events, [ItemScanned("milk", 99)])
        layer.projections.run(engine, SalesByProduct)
        with closing(layer.cache_relay()) as relay:
            relay.run()
        yield layer


def opened(url: URL | str, redis_url: str, **shards: str) -> DataLayer:
    return DataLayer(
        url,
        redis_url=redis_url,
        shards=shards,
        projections=[SalesByProduct],
        views=[WEEKLY],
        indexes=[BY_EMAIL],
    )


def standing(found: Sequence[Standing], pattern: str, name: str = "") -> Standing:
    [one] = [each for each in found if each.pattern == pattern and each.name.startswith(name)]
    return one


def wrong(found: Sequence[Standing]) -> list[tuple[str, str]]:
    return [(one.pattern, one.name) for one in found if one.concern is Concern.WRONG]


def test_nothing_is_wrong_where_all_is_as_it_should_be(layer: DataLayer) -> None:
    found = layer.status()

    assert wrong(found) == []
    assert {one.pattern for one in found} >= {
        "server",
        "log",
        "change log",
        "view",
        "projection",
        "index",
        "cache",
    }
    assert standing(found, "view").state == "fresh"
    assert standing(found, "index").state == "ready"
    assert standing(found, "cache").state == "vouched for"
    assert standing(found, "projection").pending == 0


def test_what_is_behind_waits_and_what_is_late_is_wrong(layer: DataLayer, engine: Engine) -> None:
    append_all(engine, layer.events, [ItemScanned("milk", 99), ItemScanned("tea", 1)])

    soon = standing(layer.status(late_seconds=3600), "projection")
    late = standing(layer.status(late_seconds=0), "projection")

    assert (soon.concern, soon.pending, soon.advice) == (Concern.WAITING, 2, None)
    assert soon.stale_seconds is not None
    assert soon.stale_seconds > 0
    assert (late.concern, late.advice) == (Concern.WRONG, "datapatterns worker")
    assert late.reason == "it is behind, and nobody runs it"


def test_an_open_append_is_named_with_the_session_that_holds_it(
    layer: DataLayer, engine: Engine
) -> None:
    with engine.connect() as writer, writer.begin():
        append_all_in(writer, layer)
        pid = writer.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        append_all(engine, layer.events, [ItemScanned("tea", 1)])

        found = layer.status()

    blocking = standing(found, "log", "session")
    assert blocking.name == f"session {pid}"
    assert f"pg_terminate_backend({pid})" in str(blocking.advice)
    assert blocking.concern is Concern.WAITING  # it has only just begun
    assert standing(found, "log", "events").pending == 2


def test_an_append_that_was_prepared_and_left_is_wrong(layer: DataLayer, engine: Engine) -> None:
    conn = engine.connect()
    begun = conn.begin_twophase("left_behind")
    append_all_in(conn, layer)
    begun.prepare()
    try:
        blocking = standing(layer.status(), "log", "prepared")
    finally:
        begun.rollback()
        conn.close()

    assert (blocking.name, blocking.concern) == (
        "prepared transaction left_behind",
        Concern.WRONG,
    )


def test_what_was_never_begun_says_what_begins_it(
    engine: Engine, database_url: URL, redis_url: str
) -> None:
    customer.create(engine)
    with engine.begin() as conn:
        create_tables(conn)
        WEEKLY.create(conn)
        BY_EMAIL.create(conn)
    with closing(opened(database_url, redis_url)) as layer:
        found = layer.status()

    advice = {one.pattern: one.advice for one in found if one.concern is not Concern.FINE}
    assert advice["view"] == "datapatterns views populate weekly_sales"
    assert advice["index"] == "datapatterns indexes backfill customer_by_email"
    assert advice["projection"] == "datapatterns worker"
    assert wrong(found) == [("view", "weekly_sales"), ("projection", "sales_by_product version 1")]


def test_events_that_cannot_be_applied_are_wrong(layer: DataLayer, engine: Engine) -> None:
    with engine.begin() as conn:
        execute_in(conn, "ALTER TABLE product_sales ADD CHECK (quantity < 3)")
    append_all(engine, layer.events, [ItemScanned("milk", 99)] * 3)
    with pytest.raises(ProjectionStoppedError):
        layer.projections.run(engine, SalesByProduct)

    one = standing(layer.status(), "projection")

    assert one.concern is Concern.WRONG
    assert "ProjectionStopped" in str(one.reason) or "check" in str(one.reason).lower()
    assert "datapatterns projections" in str(one.advice)


def test_a_database_without_tables_is_told_and_not_asked_further(
    empty_url: URL, redis_url: str
) -> None:
    with closing(opened(empty_url, redis_url)) as layer:
        found = layer.status()

    assert [(one.pattern, one.state, one.advice) for one in found] == [
        ("server", "no tables", "datapatterns migrate upgrade")
    ]


def test_a_server_that_is_away_keeps_nobody_from_asking_the_rest(
    layer: DataLayer, database_url: URL
) -> None:
    with closing(opened(database_url, "redis://[::1]:1/0", far=NOWHERE)) as half_away:
        found = half_away.status()

    assert wrong(found) == [("server", "far"), ("cache", "relay of datapatterns")]
    assert standing(found, "cache", "relay").state == "Redis does not answer"
    assert standing(found, "view").state == "fresh"
    assert "secret" not in repr(found)
    assert layer.status()


def test_shards_are_asked_and_one_that_is_away_is_told(
    layer: DataLayer, shard_urls: list[URL]
) -> None:
    urls: dict[str, str | URL] = {"s0": shard_urls[0], "s1": shard_urls[1]}
    with ShardCluster(control=shard_urls[0], shards=urls, groups=[households]) as cluster:
        cluster.create_map()
        both = layer.status(clusters=[cluster])
    urls["s1"] = NOWHERE
    with ShardCluster(control=shard_urls[0], shards=urls, groups=[households]) as cluster:
        one = layer.status(clusters=[cluster])

    assert wrong(both) == []
    assert standing(both, "shard", "s1").state == "answers"
    assert wrong(one) == [("shard", "s1")]
    assert standing(one, "shard", "s1").state == "not answering"


def test_the_command_ends_with_1_and_says_what_mends(
    run: Run, layer: DataLayer, engine: Engine, app: tuple[str, str]
) -> None:
    fine = run("status", *app)
    execute(engine, "UPDATE datapatterns.change_consumer SET populated = false")

    ran = run("status", *app)
    told = run("status", "view", *app, "--json")

    assert layer.status()
    assert (fine.code, fine.err) == (0, "")
    assert ran.code == 1
    assert "datapatterns views populate weekly_sales" in ran.err
    [row] = [json.loads(line) for line in told.out.splitlines()]
    assert (row["name"], row["concern"], row["advice"]) == (
        "weekly_sales",
        "wrong",
        "datapatterns views populate weekly_sales",
    )


def test_the_command_shows_only_problems_if_that_is_asked_for(
    run: Run, layer: DataLayer, app: tuple[str, str]
) -> None:
    assert layer.status()

    assert rows(run("status", "--problems", *app, "--json")) == []
    assert "nothing needs anybody" in run("status", "--problems", *app).err


@pytest.fixture
def app(
    database_url: URL, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    name = f"status_app_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APP.format(url=shown(database_url), redis=redis_url))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--app", f"{name}:layer"


def append_all_in(conn: Connection, layer: DataLayer) -> None:
    append(conn, layer.events, [ItemScanned("milk", 99)], basket="2")


def execute_in(conn: Connection, sql: str) -> None:
    conn.execute(text(sql))
