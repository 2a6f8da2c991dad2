"""`DataLayer.status` and `datapatterns status`: how everything stands, whatever part is away."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL, Connection, Engine, text

from datapatterns import DataLayer
from datapatterns.errors import IndexFailedError, ProjectionStoppedError
from datapatterns.index_table import IndexTable
from datapatterns.overview import Concern, Standing, Verdict
from datapatterns.sharding import ShardCluster
from tests.fixtures.commands import Run, rows
from tests.fixtures.declared_everything import BY_EMAIL, NOWHERE, WEEKLY, opened
from tests.fixtures.empty_database import shown
from tests.fixtures.index_tables import customer
from tests.fixtures.read_models import ItemScanned, SalesByProduct, append, append_all
from tests.fixtures.shard_model import households
from tests.fixtures.view_tables import create_tables
from tests.fixtures.view_tables import run as execute

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def standing(found: Sequence[Standing], pattern: str, name: str = "") -> Standing:
    [one] = [each for each in found if each.pattern == pattern and each.name.startswith(name)]
    return one


def wrong(found: Sequence[Standing]) -> list[tuple[str, str]]:
    return [(one.pattern, one.name) for one in found if one.concern is Concern.WRONG]


def test_nothing_is_wrong_where_all_is_as_it_should_be(whole: DataLayer) -> None:
    found = whole.status()

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


def test_what_is_behind_waits_and_what_is_late_is_wrong(whole: DataLayer, engine: Engine) -> None:
    append_all(engine, whole.events, [ItemScanned("milk", 99), ItemScanned("tea", 1)])

    soon = standing(whole.status(late_seconds=3600), "projection")
    late = standing(whole.status(late_seconds=0), "projection")

    assert (soon.concern, soon.pending, soon.advice) == (Concern.WAITING, 2, None)
    assert soon.stale_seconds is not None
    assert soon.stale_seconds > 0
    assert (late.concern, late.advice) == (Concern.WRONG, "datapatterns worker")
    assert late.reason == "it is behind, and nobody runs it"


def test_an_open_append_is_named_with_the_session_that_holds_it(
    whole: DataLayer, engine: Engine
) -> None:
    with engine.connect() as writer, writer.begin():
        append_all_in(writer, whole)
        pid = writer.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        append_all(engine, whole.events, [ItemScanned("tea", 1)])

        found = whole.status()

    blocking = standing(found, "log", "session")
    assert blocking.name == f"session {pid}"
    assert f"pg_terminate_backend({pid})" in str(blocking.advice)
    assert blocking.concern is Concern.WAITING  # it has only just begun
    assert standing(found, "log", "events").pending == 2


def test_an_append_that_was_prepared_and_left_is_wrong(whole: DataLayer, engine: Engine) -> None:
    conn = engine.connect()
    begun = conn.begin_twophase("left_behind")
    append_all_in(conn, whole)
    begun.prepare()
    try:
        blocking = standing(whole.status(), "log", "prepared")
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


def test_an_index_that_is_behind_waits_for_a_worker_and_one_that_failed_for_people(
    engine: Engine, database_url: URL
) -> None:
    by_name = IndexTable("customer_by_name", on=[customer.c.name], mode="async")
    by_email = IndexTable("customer_by_email", on=[customer.c.email], unique=True)
    customer.create(engine)
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO customer VALUES (1, 1, 'a', 'A'), (1, 2, 'a', 'B')"))
        by_name.create(conn)
        by_email.create(conn)
    with DataLayer(database_url, indexes=[by_name, by_email]) as layer:
        layer.indexes.build(engine, ["customer_by_name"])
        with pytest.raises(IndexFailedError):
            layer.indexes.build(engine)
        with engine.begin() as conn:
            conn.execute(text("INSERT INTO customer VALUES (1, 3, 'c', 'C')"))

        found = layer.status(late_seconds=3600)
        late = layer.status(late_seconds=0)

    behind = standing(found, "index", "customer_by_name")
    assert (behind.state, behind.concern, behind.pending) == ("ready", Concern.WAITING, 1)
    assert standing(late, "index", "customer_by_name").concern is Concern.WRONG
    failed = standing(found, "index", "customer_by_email")
    assert (failed.state, failed.concern, failed.pending) == ("failed", Concern.WRONG, None)
    assert failed.reason is not None
    assert failed.reason.startswith("1 rows without index row")
    assert failed.advice is not None
    assert "datapatterns indexes retry customer_by_email" in failed.advice


def test_events_that_cannot_be_applied_are_wrong(whole: DataLayer, engine: Engine) -> None:
    with engine.begin() as conn:
        execute_in(conn, "ALTER TABLE product_sales ADD CHECK (quantity < 3)")
    append_all(engine, whole.events, [ItemScanned("milk", 99)] * 3)
    with pytest.raises(ProjectionStoppedError):
        whole.projections.run(engine, SalesByProduct)

    one = standing(whole.status(), "projection")

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
    whole: DataLayer, database_url: URL
) -> None:
    with closing(opened(database_url, "redis://[::1]:1/0", far=NOWHERE)) as half_away:
        found = half_away.status()

    assert wrong(found) == [("server", "far"), ("cache", "relay of datapatterns")]
    assert standing(found, "cache", "relay").state == "Redis does not answer"
    assert standing(found, "view").state == "fresh"
    assert "secret" not in repr(found)
    assert whole.status()


def test_a_database_that_is_not_there_keeps_nobody_from_asking_the_rest(
    whole: DataLayer, database_url: URL, redis_url: str
) -> None:
    nowhere = shown(database_url.set(database="no_such_database"))
    with closing(opened(database_url, redis_url, far=nowhere)) as half_there:
        found = half_there.status()
        proofs = {one.name: one.verdict for one in half_there.verify()}

    far = standing(found, "server", "far")
    assert whole.status()
    assert (far.concern, far.state) == (Concern.WRONG, "not answering")
    assert 'database "no_such_database" does not exist' in str(far.reason)
    assert "\n" not in str(far.reason)
    assert standing(found, "view").state == "fresh"
    assert (proofs["far"], proofs["weekly_sales"]) == (Verdict.UNKNOWN, Verdict.RIGHT)


def test_what_is_asked_of_one_pattern_tells_that_its_server_is_away(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone_app.py").write_text(
        f"from datapatterns import DataLayer\nlayer = DataLayer({NOWHERE!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    ran = run("status", "view", "--app", "gone_app:layer")

    assert ran.code == 1
    assert "server main" in ran.err


def test_shards_are_asked_and_one_that_is_away_is_told(
    whole: DataLayer, shard_urls: list[URL]
) -> None:
    urls: dict[str, str | URL] = {"s0": shard_urls[0], "s1": shard_urls[1]}
    with ShardCluster(control=shard_urls[0], shards=urls, groups=[households]) as cluster:
        cluster.create_map()
        both = whole.status(clusters=[cluster])
    urls["s1"] = NOWHERE
    with ShardCluster(control=shard_urls[0], shards=urls, groups=[households]) as cluster:
        one = whole.status(clusters=[cluster])

    assert wrong(both) == []
    assert standing(both, "shard", "s1").state == "answers"
    assert wrong(one) == [("shard", "s1")]
    assert standing(one, "shard", "s1").state == "not answering"


def test_the_command_ends_with_1_and_says_what_mends(
    run: Run, whole: DataLayer, engine: Engine, whole_app: tuple[str, str]
) -> None:
    fine = run("status", *whole_app)
    execute(engine, "UPDATE datapatterns.change_consumer SET populated = false")

    ran = run("status", *whole_app)
    told = run("status", "view", *whole_app, "--json")

    assert whole.status()
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
    run: Run, whole: DataLayer, whole_app: tuple[str, str]
) -> None:
    assert whole.status()

    assert rows(run("status", "--problems", *whole_app, "--json")) == []
    assert "nothing needs anybody" in run("status", "--problems", *whole_app).err


def append_all_in(conn: Connection, whole: DataLayer) -> None:
    append(conn, whole.events, [ItemScanned("milk", 99)], basket="2")


def execute_in(conn: Connection, sql: str) -> None:
    conn.execute(text(sql))
