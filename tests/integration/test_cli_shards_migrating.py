"""`datapatterns shards migrate`, `downgrade`, `status` and `bootstrap`."""

import json
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.fixtures.commands import Run, rows
from tests.fixtures.empty_database import CreateDatabase, shown
from tests.fixtures.shop_revisions import ShopRevisions, sql_on, tables_on

pytestmark = pytest.mark.postgres

APP = """
from datapatterns.sharding import AlembicEnvironment, ShardCluster
from tests.fixtures.shard_model import households

def cluster():
    return ShardCluster(
        control={control!r},
        shards={shards!r},
        groups=[households],
        alembic=AlembicEnvironment({ini!r}),
    )
"""


@pytest.fixture
def urls(shard_urls: list[URL]) -> list[URL]:
    return shard_urls[:3]


@pytest.fixture
def shop(tmp_path: Path) -> ShopRevisions:
    shop = ShopRevisions(tmp_path)
    shop.write("CREATE TABLE product (id bigint PRIMARY KEY)", "DROP TABLE product")
    return shop


@pytest.fixture
def named(
    urls: list[URL], shop: ShopRevisions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    shards = {f"s{number}": shown(url) for number, url in enumerate(urls)}
    name = f"fleet_app_{tmp_path.name}"
    app = APP.format(control=shards["s0"], shards=shards, ini=str(shop.ini))
    (tmp_path / f"{name}.py").write_text(app)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--cluster", f"{name}:cluster"


def test_all_shards_are_migrated_and_taken_back_and_a_dry_run_does_neither(
    run: Run, named: tuple[str, str], urls: list[URL]
) -> None:
    would = rows(run("shards", "migrate", "--dry-run", "--json", *named))
    printed = run("shards", "migrate", "--sql", *named)
    assert [tables_on(url) for url in urls] == [set()] * 3
    done = run("shards", "migrate", "--canary", "s2", "--json", *named)
    assert [tables_on(url) for url in urls] == [{"product"}] * 3
    again = run("shards", "migrate", *named)
    back = rows(run("shards", "downgrade", "base", "--dry-run", "--json", *named))
    asked = run("shards", "downgrade", "base", *named)
    assert [tables_on(url) for url in urls] == [{"product"}] * 3
    undone = run("shards", "downgrade", "base", "--yes", *named)

    assert [(each["shard"], each["of"], each["revision"]) for each in would] == [
        (shard, "application", "r1") for shard in ("s0", "s1", "s2")
    ]
    assert printed.out.startswith("-- on s0, s1, s2\n")
    assert "CREATE TABLE product" in printed.out
    assert [(each["shard"], each["state"]) for each in rows(done)][:2] == [
        ("s2", "running"),
        ("s2", "done"),
    ]
    assert again.code == 0
    assert "nothing was left to do" in again.err
    assert {each["revision"] for each in back} == {"r1"}
    assert asked.code == 2
    assert (undone.code, [tables_on(url) for url in urls]) == (0, [set()] * 3)


def test_an_error_names_the_shard_and_how_far_each_one_is(
    run: Run, named: tuple[str, str], urls: list[URL]
) -> None:
    sql_on(urls[1], "CREATE TABLE product ()")

    failed = run("shards", "migrate", "--parallel", "1", "--json", *named)
    told = json.loads(failed.err.splitlines()[-1])

    assert failed.code == 2
    assert told["error"] == "ShardMigrationFailedError"
    assert told["notes"] == ["shard s0: done", "shard s1: failed", "shard s2: pending"]


def test_status_names_what_differs_and_ends_with_1(
    run: Run, named: tuple[str, str], urls: list[URL]
) -> None:
    before = run("shards", "status", "--json", *named)
    run("shards", "migrate", *named)
    sql_on(urls[1], "ALTER TABLE product ADD more int")

    ran = run("shards", "status", *named)
    found = [
        json.loads(line) for line in run("shards", "status", "--json", *named).out.splitlines()
    ]

    assert before.code == 0
    assert ran.code == 1
    assert "s1: public.product: column more is not on the others" in ran.err
    assert [each["state"] for each in found] == ["alike", "differs", "alike"]
    assert {each["last_run"] for each in found} == {"done"}


def test_a_new_shard_is_brought_to_where_the_others_are(
    run: Run, named: tuple[str, str], new_empty_url: CreateDatabase
) -> None:
    run("shards", "migrate", *named)
    url = new_empty_url()

    ran = run("shards", "bootstrap", "s3", "--url", shown(url), "--json", *named)

    assert ran.code == 0, ran
    assert json.loads(ran.out)["revision"] == "r1"
    assert tables_on(url) == {"product"}
