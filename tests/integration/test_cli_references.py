"""`datapatterns shards references`, and what `datapatterns shards lint` says of references."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from datapatterns.sharding import ShardCluster
from tests.fixtures.atomic import needs_prepared_transactions
from tests.fixtures.commands import Ran, Run
from tests.fixtures.empty_database import shown
from tests.fixtures.referring import orphan, referring_shop

pytestmark = pytest.mark.postgres

APP = """
from datapatterns.sharding import ShardCluster
from tests.fixtures.referring import REFERENCES, customers, stores

def cluster():
    return ShardCluster(
        control={control!r},
        shards={shards!r},
        groups=[customers, stores],
        references=REFERENCES,
    )
"""
OF_ORDERS = "store_order_customer_id"


@pytest.fixture
def shop(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with referring_shop(shard_urls[:2]) as cluster:
        yield cluster


@pytest.fixture
def named(
    shop: ShardCluster, shard_urls: list[URL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    urls = {shard: shown(url) for shard, url in zip(shop.engines, shard_urls, strict=False)}
    name = f"referring_app_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APP.format(control=urls["s0"], shards=urls))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--cluster", f"{name}:cluster"


def printed(ran: Ran) -> list[dict[str, Any]]:
    """Return what was found, also where that ends with 1."""
    return [json.loads(line) for line in ran.out.splitlines()]


def test_rows_that_refer_to_nothing_are_listed(
    run: Run, named: tuple[str, str], shop: ShardCluster
) -> None:
    whole = run("shards", "references", *named)
    assert whole.code == 0
    assert "every row refers to one that is there" in whole.err

    for number in range(3):
        orphan(shop, 1, 77, number=number)
    found = run("shards", "references", OF_ORDERS, *named, "--json")
    some = run("shards", "references", "--limit", "1", "--rows-at-once", "1", *named)

    assert found.code == some.code == 1
    shard = shop.audit_references(OF_ORDERS)[0].broken[0].shard
    assert printed(found) == [
        {
            "reference": OF_ORDERS,
            "state": "broken",
            "shard": shard,
            "row": [1, number],
            "refers_to": [77],
        }
        for number in range(3)
    ]
    assert f"{OF_ORDERS}: 1 rows, 1 broken, not all of them looked at" in some.err


def test_a_reference_that_was_not_declared_is_named(run: Run, named: tuple[str, str]) -> None:
    done = run("shards", "references", "nothing", *named)

    assert done.code == 2
    assert OF_ORDERS in done.err


def test_a_reference_that_no_index_helps_is_listed(run: Run, named: tuple[str, str]) -> None:
    found = run("shards", "lint", "--declared-only", *named, "--json")

    assert found.code == 1
    problems = [row["problem"] for row in printed(found) if row["rule"] == "reference-index"]
    assert len(problems) == 2  # the payer, and who has brought a customer along
    assert "no index begins with any of (payer_id)" in " ".join(problems)
