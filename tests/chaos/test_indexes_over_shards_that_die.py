"""Processes die between claims, commits and forgetting; no row is without its entry."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, select

from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures import doomed_workers as workers
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.sharded_people import Customer, by_email, empty, entries, people, rows

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]


@pytest.fixture(scope="module")
def urls(databases: Databases) -> Iterator[list[URL]]:
    urls = [databases.new() for _ in range(2)]
    yield urls
    for url in urls:
        databases.drop(url)


@pytest.fixture(scope="module")
def shop(urls: list[URL]) -> Iterator[ShardCluster]:
    with people(urls) as cluster:
        yield cluster


@pytest.mark.parametrize(("failpoint", "visit"), workers.CLAIMING_KEYS)
def test_a_process_that_is_killed_leaves_each_row_its_entry_and_no_key_in_the_way(
    shop: ShardCluster, urls: list[URL], failpoint: str, visit: int
) -> None:
    empty(shop)
    with shop.session() as session, session.begin():
        session.add(Customer(tenant_id=1, id=1, email="old@example.org"))
    written = [url.render_as_string(hide_password=False) for url in urls]

    run_until_failpoint(workers.hire_and_rename, failpoint, written[0], *written, visit=visit)

    shop.recover(grace_seconds=0)
    assert {*rows(shop)} <= {*entries(shop)}
    with shop.session() as session:
        for email, tenant, number, _ in rows(shop):
            assert [(r.tenant_id, r.id) for r in by_email.lookup(session, email)] == [
                (tenant, number)
            ]
        found = session.scalars(
            select(Customer).where(Customer.tenant_id.in_([1, 2])),
            execution_options={"scatter": True},
        )
        assert len(found.all()) == (2 if failpoint == "index.base-committed" else 1)
    taken = {email for email, *_ in rows(shop)}
    free = {"old@example.org", "new@example.org", "hired@example.org"} - taken
    for number, email in enumerate(sorted(free)):
        with shop.session() as session, session.begin():
            session.add(Customer(tenant_id=9, id=number, email=email))
    assert {*rows(shop)} <= {*entries(shop)}
    assert len(rows(shop)) == 3
