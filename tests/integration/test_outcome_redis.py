"""Commands to Redis whose reply is lost are not carried out twice, or it makes no difference."""

from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import pytest
from redis import Redis
from redis.connection import parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import Engine

from datapatterns import DataLayer
from datapatterns.cqrs import Projections
from datapatterns.cqrs.in_redis.redis_changes import Outcome
from datapatterns.cqrs.in_redis.redis_checkpoint import DamagedError, LaterEpochError, Ticket
from datapatterns.cqrs.in_redis.redis_keys import Place, RedisKeys
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.running.log_witness import LogWitness
from datapatterns.event_sourcing import EventStore, Position
from datapatterns.testing.faults import FaultProxy, Trap, armed
from tests.fixtures.read_models import Dashboard, ItemScanned, append_all

pytestmark = [pytest.mark.redis, pytest.mark.chaos]

SCANS = Place("hash", "scans", "apple")


@pytest.fixture
def network(redis_url: str, redis_client: Redis) -> Iterator[FaultProxy[str]]:
    """A network that can break, on the way to an empty Redis."""
    redis_client.flushdb()
    with FaultProxy(redis_url) as network:
        yield network


@pytest.fixture
def eager(network: FaultProxy[str]) -> Iterator[Redis]:
    """A client that sends again what was not answered, as ``Redis(host=...)`` does by default."""
    at = parse_url(network.url)  # type: ignore[no-untyped-call] # redis's own
    with closing(Redis(at["host"], at["port"], db=at.get("db", 0))) as client:
        yield client


@pytest.fixture
def model(eager: Redis) -> RedisReadModel:
    """A read model whose scripts the server knows already, so that each is one command."""
    known = RedisReadModel(eager, RedisKeys("test", "known", 1))
    known.adopt(FIRST)
    known.reset(FIRST, target=Position(0))
    known.apply(FIRST, Outcome(), after=Position(0), position=Position(1))
    return RedisReadModel(eager, RedisKeys("test", "dashboard", 1))


FIRST = Ticket(uuid4(), 1)
SECOND = Ticket(FIRST.build, 2)


def test_a_client_that_is_made_without_a_url_counts_twice(
    network: FaultProxy[str], eager: Redis, redis_client: Redis
) -> None:
    trap = network.cut_next_reply_to("INCRBY")

    assert eager.incr("visits") == 2

    assert trap.has_fired
    assert redis_client.get("visits") == b"2"


def test_the_client_of_a_layer_does_not(network: FaultProxy[str], redis_client: Redis) -> None:
    with closing(DataLayer(redis_url=network.url)) as layer:
        network.cut_next_reply_to("INCRBY")
        with pytest.raises(RedisConnectionError):
            layer.redis.incr("visits")

        assert redis_client.get("visits") == b"1"
        assert layer.redis.incr("visits") == 2


def test_the_client_of_a_layer_notices_by_itself_that_it_was_disconnected(
    network: FaultProxy[str],
) -> None:
    with closing(DataLayer(redis_url=network.url)) as layer:
        assert layer.redis.incr("visits") == 1
        assert network.cut() == 1

        assert layer.redis.incr("visits") == 2


def test_a_page_that_is_sent_twice_is_applied_once_and_says_so(
    network: FaultProxy[str], model: RedisReadModel
) -> None:
    model.reset(FIRST, target=Position(0))
    trap = network.cut_next_reply_to("EVALSHA")

    assert model.apply(FIRST, Outcome({SCANS: "3"}), after=Position(0), position=Position(5))

    assert trap.has_fired
    found = model.stored([SCANS], Position(5))
    assert found is not None
    assert found.places == {SCANS: "3"}


def test_a_page_of_another_lease_is_not_taken_for_a_repetition(model: RedisReadModel) -> None:
    model.reset(FIRST, target=Position(0))
    model.apply(FIRST, Outcome({SCANS: "3"}), after=Position(0), position=Position(5))
    model.adopt(SECOND)

    assert not model.apply(FIRST, Outcome({SCANS: "9"}), after=Position(0), position=Position(5))
    assert not model.apply(SECOND, Outcome({SCANS: "9"}), after=Position(1), position=Position(7))

    found = model.stored([SCANS], Position(5))
    assert found is not None
    assert found.places == {SCANS: "3"}


@pytest.mark.parametrize("script", ["begin", "last"])
def test_a_reset_that_is_sent_twice_is_a_reset(
    network: FaultProxy[str], model: RedisReadModel, script: str
) -> None:
    traps: list[Trap] = []

    def strike() -> None:
        traps.append(network.cut_next_reply_to("EVALSHA"))

    if script == "begin":
        strike()
        model.reset(FIRST, target=Position(0))
    else:
        with armed("redis-projection.clearing", strike):
            model.reset(FIRST, target=Position(0))

    assert traps[0].has_fired
    assert model.adopt(FIRST) == (0, LogWitness())


def test_a_reset_of_an_earlier_lease_is_refused_still(model: RedisReadModel) -> None:
    model.reset(SECOND, target=Position(0))

    with pytest.raises(LaterEpochError):
        model.clear(FIRST, [], then="build")
    with pytest.raises(DamagedError):  # of its own, which has ended
        model.clear(SECOND, [])


@pytest.mark.postgres
@pytest.mark.parametrize(
    "failpoint", ["redis-projection.build-confirmed", "redis-projection.page-read"]
)
def test_a_run_with_an_eager_client_counts_each_event_once(
    engine: Engine, network: FaultProxy[str], eager: Redis, failpoint: str
) -> None:
    append_all(engine, EventStore(), [ItemScanned("apple", 30), ItemScanned("apple", 40)])
    projections = Projections(redis=eager)
    traps: list[Trap] = []

    with armed(failpoint, lambda: traps.append(network.cut_next_reply_to("EVALSHA"))):
        projections.catch_up(engine, Dashboard)

    assert traps[0].has_fired
    assert projections.view(Dashboard).hash("cents_by_product") == {"apple": "70"}
    assert not projections.verify(engine, Dashboard).differences
