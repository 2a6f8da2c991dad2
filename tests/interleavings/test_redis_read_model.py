"""A read model in Redis: its pages are applied there, its leases are in PostgreSQL."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine, text

from datapatterns.cqrs import Projections
from datapatterns.cqrs.in_redis.redis_changes import Outcome as PageOutcome
from datapatterns.cqrs.in_redis.redis_checkpoint import Ticket
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.in_redis.redis_scripts import ADOPT, APPLY, BEGIN_CLEARING, CLEAR
from datapatterns.cqrs.running.log_witness import LogWitness
from datapatterns.errors import LeaseHeldError, LeaseLostError, ServerUnavailableError
from datapatterns.event_sourcing import Position
from datapatterns.testing.interleaving import Explorer, Fault, Gate, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most, torture
from tests.fixtures.read_models import Dashboard
from tests.interleavings.designs.design import Tasks, is_commit
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
        self._gated_redis = gated_redis
        for script in (ADOPT, APPLY, BEGIN_CLEARING, CLEAR):
            self.know(script)
        self.till = Till(plain, self._projections, Dashboard)
        self.till.let_leases_lapse(plain)
        self._projections.rebuild(plain, Dashboard)
        self._plain = plain
        self.run = partial(
            self._gated_projections.run, gated, Dashboard, pages_max=2, page_events=1
        )
        self.lapse = partial(self.till.let_leases_lapse, gated)

    def rob(self) -> None:
        """Take a structure away, without a word."""
        self._gated_redis.delete("{datapatterns:dashboard:v1}:hash:cents_by_product")

    def know(self, script: str) -> None:
        """Spare the first schedule the round trip of a script that the server does not know."""
        self._redis.script_load(script)

    def open(self) -> None:
        self.till.open(scanned=2)

    def each_event_counts_once(self, _outcome: Outcome) -> None:
        self._has_not_gone_back()
        self.each_event_counts_once_in_the_end(_outcome)

    def each_event_counts_once_in_the_end(self, _outcome: Outcome) -> None:
        """Although it is built anew."""
        self.till.settle()
        key = "{datapatterns:dashboard:v1}:hash:cents_by_product"
        shown = int(self._redis.hget(key, self.till.product) or 0)
        assert shown == self.till.scanned(), (
            f"{self.till.scanned()} were scanned, {shown} are shown"
        )

    def _has_not_gone_back(self) -> None:
        promised = text("SELECT position FROM datapatterns.projection_shard WHERE name = :name")
        with self._plain.begin() as conn:
            position = conn.execute(promised, {"name": Dashboard.name}).scalar_one()
            shown = self._projections.position(conn, Dashboard)
        assert shown is not None
        assert shown >= position, f"Redis had got to {position} and is back at {shown}"


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
        faults=list(Fault) if THOROUGH else [Fault.CRASH],
        allowed_errors=(*LEASES, ServerUnavailableError),
    )

    assert explored.exhausted


def test_a_page_and_its_checkpoint_one_after_the_other_would_count_twice(
    explorer: Explorer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = "redis.call('HSET', KEYS[1], 'position', ARGV[4], 'witness', ARGV[5],"
    alone = "redis.call('HSET', KEYS[1],"
    assert together in APPLY
    apply = RedisReadModel.apply

    def apart(
        self: RedisReadModel,
        ticket: Ticket,
        outcome: PageOutcome,
        *,
        after: Position,
        position: Position,
        witness: LogWitness = LogWitness(),  # noqa: B008 -- it is frozen
    ) -> bool:
        applied = apply(self, ticket, outcome, after=after, position=position, witness=witness)
        for field, value in (("position", str(position)), ("witness", witness.text)):
            self.client.hset(self.keys.checkpoint, field, value)
        return applied

    shop.know(APPLY.replace(together, alone))
    monkeypatch.setattr(
        "datapatterns.cqrs.in_redis.redis_read_model.APPLY", APPLY.replace(together, alone)
    )
    monkeypatch.setattr(RedisReadModel, "apply", apart)
    with pytest.raises(InterleavingError, match="are shown"):
        explorer.explore(
            partial(running, shop),
            invariant=shop.each_event_counts_once,
            crash_at=touches_redis_or_commits,
            faults=[Fault.CRASH],
            allowed_errors=(*LEASES, ServerUnavailableError),
        )


def robbed(shop: Shop) -> Tasks:
    shop.open()
    return {"runner": shop.run, "thief": shop.rob}


def test_a_structure_that_is_taken_at_any_step_is_missed_and_made_again(
    explorer: Explorer, shop: Shop
) -> None:
    explored = explorer.explore(
        partial(robbed, shop),
        invariant=shop.each_event_counts_once_in_the_end,
        allowed_errors=LEASES,
        max_preemptions=2 if THOROUGH else 1,
    )

    assert explored.exhausted


def test_without_the_sizes_a_structure_that_is_taken_would_be_counted_on_from_nothing(
    explorer: Explorer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = "if damaged then return -1 end"
    assert guard in APPLY
    blind = APPLY.replace(guard, "")
    shop.know(blind)
    monkeypatch.setattr("datapatterns.cqrs.in_redis.redis_read_model.APPLY", blind)
    monkeypatch.setattr("datapatterns.cqrs.in_redis.redis_read_model._sizes_agree", lambda *_: True)
    with pytest.raises(InterleavingError, match="are shown"):
        explorer.explore(
            partial(robbed, shop),
            invariant=shop.each_event_counts_once_in_the_end,
            allowed_errors=LEASES,
            max_preemptions=1,
        )


def test_of_two_runners_only_one_moves_redis_on_even_when_a_lease_lapses_unnoticed(
    explorer: Explorer, shop: Shop
) -> None:
    explored = explorer.explore(
        partial(lapsing, shop),
        invariant=shop.each_event_counts_once,
        max_preemptions=2 if THOROUGH else 1,
        allowed_errors=LEASES,
        max_schedules=at_most(12),
    )

    assert explored.schedules > 10


@torture
def test_without_fencing_a_runner_that_lost_its_lease_takes_redis_back(
    explorer: Explorer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = (
        " or c[2] ~= ARGV[2]",
        "if c[3] ~= ARGV[3] then return c[3] == ARGV[4] and 1 or 0 end",
    )
    blind = APPLY
    for guard in guards:
        assert guard in blind
        blind = blind.replace(guard, "")

    shop.know(blind)
    monkeypatch.setattr("datapatterns.cqrs.in_redis.redis_read_model.APPLY", blind)
    with pytest.raises(InterleavingError, match="is back at"):
        explorer.explore(
            partial(lapsing, shop),
            invariant=shop.each_event_counts_once,
            max_preemptions=1,
            allowed_errors=LEASES,
        )
