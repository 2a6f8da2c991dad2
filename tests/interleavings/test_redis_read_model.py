"""A read model in Redis: its pages are applied there, its leases are in PostgreSQL."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine

from datapatterns.cqrs import Projections
from datapatterns.errors import LeaseHeldError, LeaseLostError, ServerUnavailableError
from datapatterns.testing.interleaving import Explorer, Fault, Gate, InterleavingError, Outcome
from tests.fixtures.read_models import Dashboard
from tests.interleavings.designs.design import Tasks, is_commit
from tests.interleavings.effort import THOROUGH, at_most
from tests.interleavings.till import STORE, Till

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

LEASES = (LeaseHeldError, LeaseLostError)


@pytest.fixture(scope="module")
def gated_redis(explorer: Explorer) -> Redis:
    # A reply that is lost makes the client ask again, at once and only once.
    return explorer.redis(retry=Retry(NoBackoff(), 1))


class Shop:
    """A till, and what its dashboard shows."""

    def __init__(self, gated: Engine, plain: Engine, gated_redis: Redis, redis: Redis) -> None:
        self._gated = gated
        self._gated_projections = Projections(STORE, redis=gated_redis)
        self._projections = Projections(STORE, redis=redis)
        self._redis = redis
        self.till = Till(plain, self._projections, Dashboard)
        self.till.let_leases_lapse(plain)
        self._projections.rebuild(plain, Dashboard)
        self.run = partial(self._gated_projections.run, gated, Dashboard)
        self.lapse = partial(self.till.let_leases_lapse, gated)

    def open(self) -> None:
        self.till.open(scanned=2)

    def each_event_counts_once(self, _outcome: Outcome) -> None:
        self.till.settle()
        key = "{datapatterns:dashboard:v1}:hash:cents_by_product"
        shown = int(self._redis.hget(key, self.till.product) or 0)
        assert shown == self.till.scanned(), (
            f"{self.till.scanned()} were scanned, {shown} are shown"
        )


@pytest.fixture
def shop(gated: Engine, plain: Engine, gated_redis: Redis, redis_url: str) -> Iterator[Shop]:
    with closing(Redis.from_url(redis_url)) as redis:
        yield Shop(gated, plain, gated_redis, redis)


def running(shop: Shop) -> Tasks:
    shop.open()
    return {"runner": shop.run}


def lapsing(shop: Shop) -> Tasks:
    shop.open()
    return {"zombie": shop.run, "lapse": shop.lapse, "heir": shop.run}


def touches_redis_or_commits(gate: Gate) -> bool:
    return gate.label.startswith("redis") or is_commit(gate)


def test_a_page_in_redis_and_its_checkpoint_are_one_wherever_the_runner_dies(
    explorer: Explorer, shop: Shop
) -> None:
    explored = explorer.explore(
        partial(running, shop),
        invariant=shop.each_event_counts_once,
        crash_at=touches_redis_or_commits,
        faults=list(Fault) if THOROUGH else [Fault.CRASH, Fault.REPLY_LOST],
        allowed_errors=(*LEASES, ServerUnavailableError),
    )

    assert explored.exhausted


def test_a_page_that_did_not_look_where_redis_is_would_count_twice(
    explorer: Explorer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = "if c[3] ~= ARGV[3] then return c[3] == ARGV[4] and 1 or 0 end"
    assert guard in APPLY
    monkeypatch.setattr("datapatterns.cqrs.redis_checkpoint.APPLY", APPLY.replace(guard, ""))

    with pytest.raises(InterleavingError, match="are shown"):
        explorer.explore(
            partial(lapsing, shop),
            invariant=shop.each_event_counts_once,
            allowed_errors=(*LEASES, ServerUnavailableError),
        )


def test_of_two_runners_only_one_moves_redis_on_even_when_a_lease_lapses_unnoticed(
    explorer: Explorer, shop: Shop
) -> None:
    explored = explorer.explore(
        partial(lapsing, shop),
        invariant=shop.each_event_counts_once,
        max_preemptions=2 if THOROUGH else 1,
        allowed_errors=LEASES,
        max_schedules=at_most(40),
    )

    assert explored.schedules >= 40
