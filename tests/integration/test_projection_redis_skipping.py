"""What Redis skips is on record, whoever dies between the record and Redis."""

import pytest
from redis import Redis
from sqlalchemy import Engine

from datapatterns.cqrs import Projections, RedisChanges, RedisProjection, on
from datapatterns.cqrs.definition import OnPoison
from datapatterns.errors import ProjectionDefinitionError, ProjectionStoppedError
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.failpoints import armed
from tests.fixtures.poisoned import PriceError, Sold
from tests.fixtures.read_models import append_all

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

STORE = EventStore()


def dashboard(on_poison: OnPoison, *, mended: bool = False) -> type[RedisProjection]:
    class Counting(RedisProjection, version=1, name="counting", on_poison=on_poison):
        @on(Sold)
        def _(self, changes: RedisChanges, e: Sold, _meta: RecordedEvent) -> None:
            for product in e.products:
                changes.increment("sold", product)
                if product in e.bad and not mended:
                    raise PriceError(product)

    return Counting


SKIPS, MENDED = dashboard("skip"), dashboard("skip", mended=True)
EVENTS = [
    Sold(["milk"], 1, []),
    Sold(["milk", "tea"], 1, ["tea"]),
    Sold(["gin"], 1, ["gin"]),
    Sold(["milk"], 1, []),
]


@pytest.fixture
def projections(redis_client: Redis) -> Projections:
    return Projections(STORE, redis=redis_client)


def skipped(engine: Engine, projections: Projections) -> list[tuple[int, str | None]]:
    with engine.begin() as conn:
        gone = projections.skipped(conn)
        assert {one.key_digest for one in gone} <= {None}
        return [(one.position, one.message) for one in gone]


def test_what_cannot_be_applied_is_left_out_as_a_whole_and_recorded(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, EVENTS)

    projections.catch_up(engine, SKIPS)

    assert projections.view(SKIPS).hash("sold") == {"milk": "2"}
    assert skipped(engine, projections) == [(2, "tea"), (3, "gin")]
    verified = projections.verify(engine, SKIPS)
    assert (verified.matches, verified.skipped) == (True, 2)


def test_a_runner_that_died_before_redis_moved_on_has_skipped_nothing_yet(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, EVENTS)
    with armed("redis-projection.skip-noted", die), pytest.raises(LookupError):
        projections.catch_up(engine, SKIPS)
    assert skipped(engine, projections) == [(2, "tea")]

    projections.catch_up(engine, MENDED)

    assert projections.view(MENDED).hash("sold") == {"milk": "3", "tea": "1", "gin": "1"}
    assert skipped(engine, projections) == []


def test_a_runner_that_died_after_redis_moved_on_has_left_a_record(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, EVENTS)
    with armed("redis-projection.page-applied", die), pytest.raises(LookupError):
        projections.catch_up(engine, SKIPS)

    projections.catch_up(engine, MENDED)

    assert projections.view(MENDED).hash("sold") == {"milk": "3", "gin": "1"} | {"milk": "2"}
    assert skipped(engine, projections) == [(2, "tea")]
    assert projections.verify(engine, MENDED).matches


def test_a_rebuild_applies_what_was_skipped_once_it_is_mended(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, EVENTS)
    projections.catch_up(engine, SKIPS)

    projections.rebuild(engine, MENDED)

    assert projections.view(MENDED).hash("sold") == {"milk": "3", "tea": "1", "gin": "1"}
    assert skipped(engine, projections) == []


def test_in_redis_a_projection_stops_unless_told_and_cannot_park(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, EVENTS)

    with pytest.raises(ProjectionStoppedError):
        projections.catch_up(engine, dashboard("stop"))
    with pytest.raises(ProjectionDefinitionError, match="no key that could be parked"):
        dashboard("park")


def die() -> None:
    raise LookupError
