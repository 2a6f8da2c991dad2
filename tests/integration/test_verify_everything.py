"""`DataLayer.verify` and `datapatterns verify`: is all that is derived what its source says?"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns import DataLayer
from datapatterns.event_sourcing import EventStore, HashChain
from datapatterns.overview import Proof, Verdict
from datapatterns.sharding import ShardCluster
from tests.fixtures.commands import Run
from tests.fixtures.declared_everything import NOWHERE, opened
from tests.fixtures.shard_model import households

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def verdicts(found: Sequence[Proof]) -> dict[tuple[str, str], Verdict]:
    return {(one.pattern, one.name): one.verdict for one in found}


def spoil(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in statements:
            conn.execute(text(statement))


def test_all_is_right_and_says_how_much_was_compared(whole: DataLayer, engine: Engine) -> None:
    with engine.begin() as conn:
        HashChain(EventStore()).seal(conn)

    found = list(whole.verify())

    assert verdicts(found) == {
        ("view", "weekly_sales"): Verdict.RIGHT,
        ("event chain", "sealed events"): Verdict.RIGHT,
        ("projection", "sales_by_product version 1"): Verdict.RIGHT,
        ("index", "customer_by_email"): Verdict.RIGHT,
    }
    assert {one.name: one.compared for one in found}["sales_by_product version 1"] == 1


def test_each_thing_that_differs_is_told_with_what_mends_it(
    whole: DataLayer, engine: Engine
) -> None:
    spoil(
        engine,
        "INSERT INTO customer VALUES (1, 1, 'a@b', 'A', 0)",
        "UPDATE product_sales SET cents = 1",
        "DELETE FROM datapatterns.customer_by_email",
    )

    found = {one.pattern: one for one in whole.verify()}

    assert found["view"].verdict is Verdict.RIGHT
    assert found["projection"].verdict is Verdict.WRONG
    assert found["projection"].advice == "datapatterns projections rebuild sales_by_product"
    assert (found["index"].verdict, found["index"].differing) == (Verdict.WRONG, 1)
    assert found["index"].advice == "datapatterns indexes repair customer_by_email"


def test_what_cannot_be_looked_up_keeps_nobody_from_proving_the_rest(
    whole: DataLayer, engine: Engine
) -> None:
    spoil(engine, "ALTER TABLE datapatterns.index_table RENAME TO mislaid")

    found = verdicts(list(whole.verify()))

    assert found["index", "all"] is Verdict.UNKNOWN
    assert found["view", "weekly_sales"] is Verdict.RIGHT


def test_what_is_not_whole_is_left_out(whole: DataLayer, engine: Engine) -> None:
    spoil(engine, "UPDATE datapatterns.change_consumer SET populated = false")

    found = {one.pattern: one for one in whole.verify()}

    assert (found["view"].verdict, found["view"].reason) == (Verdict.LEFT_OUT, "it is unpopulated")
    assert found["event chain"].reason == "nothing was sealed"


def test_a_server_that_is_away_keeps_nobody_from_proving_the_rest(
    whole: DataLayer, database_url: URL
) -> None:
    far = opened(database_url, "redis://[::1]:1/0", far=NOWHERE)
    found = list(far.verify())
    far.close()

    assert verdicts(found)["server", "far"] is Verdict.UNKNOWN
    assert verdicts(found)["view", "weekly_sales"] is Verdict.RIGHT
    assert list(whole.verify())


def test_shards_and_copies_are_compared(whole: DataLayer, shard_urls: list[URL]) -> None:
    urls: dict[str, str | URL] = {"s0": shard_urls[0], "s1": shard_urls[1]}
    with ShardCluster(control=shard_urls[0], shards=urls, groups=[households]) as cluster:
        cluster.create_map()
        found = list(whole.verify(clusters=[cluster], wanted=lambda one: one.database == "shards"))

    assert ("sharded table", "all") in verdicts(found)


@pytest.mark.usefixtures("whole")
def test_the_command_exits_with_5_and_names_what_mends(
    run: Run, engine: Engine, whole_app: tuple[str, str]
) -> None:
    right = run("verify", *whole_app)
    spoil(engine, "UPDATE product_sales SET cents = 1")

    ran = run("verify", *whole_app)
    told = run("verify", "projection", *whole_app, "--json")

    assert right.code == 0, right
    assert ran.code == 5
    assert "datapatterns projections rebuild sales_by_product" in ran.err
    [row] = [json.loads(line) for line in told.out.splitlines()]
    assert (row["verdict"], row["differing"]) == ("wrong", 1)


@pytest.mark.usefixtures("whole")
def test_a_report_says_what_was_proven_and_the_next_run_goes_on_from_there(
    run: Run, engine: Engine, whole_app: tuple[str, str], tmp_path: Path
) -> None:
    report = tmp_path / "proofs.jsonl"
    spoil(engine, "UPDATE product_sales SET cents = 1")
    assert run("verify", *whole_app, "--report", str(report)).code == 5
    with report.open("a") as torn:
        torn.write('{"pattern": "vi')  # the process died here
    spoil(engine, "UPDATE product_sales SET cents = 99")

    ran = run("verify", *whole_app, "--report", str(report), "--continue", "--json")

    assert ran.code == 0, ran
    lines = [json.loads(line) for line in report.read_text().splitlines() if line.endswith("}")]
    again = [line["name"] for line in lines[4:]]
    assert again == ["sealed events", "sales_by_product version 1"]
    assert {json.loads(line)["name"] for line in ran.out.splitlines()} == {
        "weekly_sales",
        "sealed events",
        "sales_by_product version 1",
        "customer_by_email",
    }


@pytest.mark.usefixtures("whole")
def test_a_database_that_is_away_ends_with_4(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "away_app.py").write_text(
        f"from datapatterns import DataLayer\nlayer = DataLayer({NOWHERE!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    ran = run("verify", "--app", "away_app:layer")

    assert ran.code == 4
    assert "server main" in ran.err


def test_to_continue_a_report_has_to_be_named(run: Run, whole_app: tuple[str, str]) -> None:
    assert "--report FILE" in run("verify", *whole_app, "--continue").err
