"""Processes die while they hand keys over; no row is without its entry, and no key is twice."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from datapatterns.errors import IndexKeyTakenError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.atomic import decisions, needs_prepared_transactions, prepared
from tests.fixtures.doomed_handovers import HANDING_OVER, begin, keys_of, rotate_keys
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.sharded_people import (
    EMAIL,
    Customer,
    both,
    by_email,
    empty,
    entries,
    people,
    rows,
    tenant_on,
)

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

HAPPENED = {"atomic.decided", "atomic.branch-settled", "index.base-committed"}


@pytest.fixture(scope="module")
def urls(databases: Databases) -> Iterator[list[URL]]:
    urls = [databases.new() for _ in range(2)]
    needs_prepared_transactions(urls[0])
    yield urls
    for url in urls:
        databases.drop(url)


@pytest.fixture(scope="module")
def shop(urls: list[URL]) -> Iterator[ShardCluster]:
    with people(urls) as cluster:
        yield cluster


@pytest.mark.parametrize("reads_first", [False, True], ids=["recovered", "read first"])
@pytest.mark.parametrize(("failpoint", "visit"), HANDING_OVER)
def test_a_process_that_is_killed_leaves_each_key_to_one_row_that_is_found(
    shop: ShardCluster, urls: list[URL], failpoint: str, visit: int, *, reads_first: bool
) -> None:
    empty(shop)
    begin(shop)
    first, second, old, new = keys_of(shop)
    written = [url.render_as_string(hide_password=False) for url in urls]

    run_until_failpoint(rotate_keys, failpoint, written[0], *written, visit=visit)

    if not reads_first:
        shop.recover(grace_seconds=0)
    has_happened = failpoint in HAPPENED
    expected = {1: second, 2: first, 3: new} if has_happened else {1: first, 2: second, 3: old}
    with shop.session() as session:
        found = {
            number: [row.id for row in by_email.lookup(session, email)]
            for number, email in expected.items()
        }
    assert found == {1: [1], 2: [2], 3: [3]}

    shop.recover(grace_seconds=0)
    assert prepared(shop) == decisions(shop) == []
    assert {row[2]: row[0] for row in rows(shop)} == expected
    report = both.verify(shop, [EMAIL])[EMAIL]
    assert (report.missing, report.different, report.undecided) == (0, 0, 0)
    both.sweep(shop, [EMAIL])
    assert both.verify(shop, [EMAIL])[EMAIL].clean
    assert entries(shop) == rows(shop)
    for email in expected.values():
        with shop.session() as session:
            session.add(Customer(tenant_id=tenant_on(shop, "s1"), id=9, email=email))
            with pytest.raises(IndexKeyTakenError):
                session.commit()
