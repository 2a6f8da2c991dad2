"""`datapatterns shards broadcast` and `datapatterns shards lint`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, text

from datapatterns.sharding import ShardCluster
from tests.fixtures.atomic import needs_prepared_transactions
from tests.fixtures.broadcast_model import Country, broadcast_shop, the_copy
from tests.fixtures.commands import Ran, Run
from tests.fixtures.empty_database import shown

pytestmark = pytest.mark.postgres

APP = """
from datapatterns.sharding import ShardCluster
from tests.fixtures.broadcast_model import families

def cluster():
    return ShardCluster(control={control!r}, shards={shards!r}, groups=[families])
"""


@pytest.fixture
def shop(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with broadcast_shop(shard_urls[:2]) as cluster:
        with cluster.session() as session, session.begin():
            session.add_all([Country(code="de"), Country(code="fr")])
        yield cluster


@pytest.fixture
def named(
    shop: ShardCluster, shard_urls: list[URL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    urls = {shard: shown(url) for shard, url in zip(shop.engines, shard_urls, strict=False)}
    name = f"broadcast_app_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APP.format(control=urls["s0"], shards=urls))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--cluster", f"{name}:cluster"


def printed(ran: Ran) -> list[dict[str, Any]]:
    """Return what was found, also where that ends with 1."""
    return [json.loads(line) for line in ran.out.splitlines()]


def test_copies_are_compared_and_mended(
    run: Run, named: tuple[str, str], shop: ShardCluster
) -> None:
    equal = run("shards", "broadcast", "verify", *named, "--json")
    assert {(row["table"], row["rows"]) for row in printed(equal)} == {("country", 2), ("rate", 0)}

    with shop.engines["s1"].begin() as conn:
        conn.execute(text("DELETE FROM country WHERE code = 'de'"))
    differs = run("shards", "broadcast", "verify", "country", *named, "--json")
    assert differs.code == 1
    assert [row["missing"] for row in printed(differs)] == [[], [["de"]]]

    repair = ("shards", "broadcast", "repair", "country", "--source", "s0", *named)
    assert run(*repair, "--dry-run").code == 0
    assert not shop.verify_broadcast(Country).equal
    assert run(*repair).code == 0
    assert len(the_copy(shop, "country")) == 2


def test_a_table_that_has_no_copies_is_named(run: Run, named: tuple[str, str]) -> None:
    done = run("shards", "broadcast", "verify", "cart", *named)

    assert done.code == 2
    assert "country, rate" in done.err


def test_what_is_wrong_with_tables_is_listed(run: Run, named: tuple[str, str]) -> None:
    found = run("shards", "lint", *named, "--json")

    assert found.code == 1
    assert {(row["rule"], row["table"]) for row in printed(found)} == {
        ("bucket-index", "cart"),
        ("bucket-index", "item"),
    }
    assert run("shards", "lint", "--declared-only", *named).code == 0
