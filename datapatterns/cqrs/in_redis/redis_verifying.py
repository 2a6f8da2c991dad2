"""Compare a read model in Redis with what the log says, as of the same position."""

from dataclasses import dataclass, field

from sqlalchemy import Engine

from datapatterns.cqrs.definition import RedisProjection
from datapatterns.cqrs.in_redis.redis_changes import Place
from datapatterns.cqrs.in_redis.redis_checkpoint import RedisReadModel, redis_answers
from datapatterns.cqrs.in_redis.redis_projecting import fold_changes
from datapatterns.cqrs.running.running import fresh_reads
from datapatterns.cqrs.tables.differences import Difference, Verification
from datapatterns.cqrs.tables.projecting import read_page
from datapatterns.errors import ReadModelBuildingError
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import reading


@dataclass(slots=True)
class RedisReplay:
    """What Redis should hold as of ``position``, in memory: as large as the read model."""

    store: EventStore
    projection: type[RedisProjection]
    page_events: int
    position: Position = START
    places: dict[Place, str] = field(default_factory=dict)

    def advance(self, engine: Engine, *, until: Position) -> None:
        """Fold the log up to ``until``."""
        with fresh_reads(engine) as conn:
            while self.position < until:
                with reading(conn):
                    page = read_page(
                        conn, self.store, self.projection, self.position, self.page_events
                    )
                events = [event for event in page.events if event.position <= until]
                changes = fold_changes(self.store, self.projection, events)
                for place, value in changes.resolved(self.places).items():
                    if value is None:
                        self.places.pop(place, None)
                    else:
                        self.places[place] = value
                self.position = min(page.checkpoint, until)


@redis_answers()
def verify_redis(
    engine: Engine, replay: RedisReplay, model: RedisReadModel, *, limit: int
) -> Verification:
    """Do what `Projections.verify` promises for Redis."""
    structures = model.structures()
    while True:
        position, stored = model.snapshot(structures)
        if position is None:
            raise ReadModelBuildingError(replay.projection.name, position=None)
        if position < replay.position:  # an older dump came back meanwhile
            replay.position, replay.places = START, {}
        replay.advance(engine, until=position)
        expected = {(place.kind, place.name) for place in replay.places}
        # Some may have appeared since the keys were listed: look again, with those as well.
        if expected <= structures:
            return Verification(
                position, len(replay.places), _compared(stored, replay.places)[:limit]
            )
        structures |= expected


def _compared(stored: dict[Place, str], expected: dict[Place, str]) -> list[Difference]:
    differing = sorted(
        place
        for place in stored.keys() | expected.keys()
        if stored.get(place) != expected.get(place)
    )
    return [
        Difference(
            (place.kind, place.name, place.field),
            {"value": stored[place]} if place in stored else None,
            {"value": expected[place]} if place in expected else None,
        )
        for place in differing
    ]
