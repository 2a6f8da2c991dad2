"""Compare a read model in Redis with what the log says, as of the same position."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from sqlalchemy import Engine

from datapatterns.cqrs.definition import RedisProjection
from datapatterns.cqrs.in_redis.redis_changes import Outcome
from datapatterns.cqrs.in_redis.redis_connection import redis_answers
from datapatterns.cqrs.in_redis.redis_content import RedisContent
from datapatterns.cqrs.in_redis.redis_folding import fold_changes
from datapatterns.cqrs.in_redis.redis_keys import Place, Structure
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.running.paging import read_page
from datapatterns.cqrs.running.parking import WHOLE_EVENT, left_out
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.differences import Difference, Verification
from datapatterns.cqrs.tables.sampling import EVERYTHING, Sample, Wanted
from datapatterns.errors import ReadModelBuildingError
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import fresh_reads, reading


@dataclass(slots=True)
class RedisReplay:
    """What Redis should hold as of ``position``, in memory: as large as what is compared.

    Attributes:
        wanted: How much is to be compared; places are what is chosen.
        on_page: Called after each page of the log.
        sample: What was chosen.
    """

    store: EventStore
    projection: type[RedisProjection]
    page_events: int
    position: Position = START
    content: RedisContent = field(default_factory=RedisContent)
    skipped: int = 0
    wanted: Wanted = EVERYTHING
    on_page: Callable[[ProjectionProgress], None] = lambda _: None
    sample: Sample | None = None

    def advance(self, engine: Engine, *, until: Position) -> None:
        """Fold the log up to ``until``."""
        with fresh_reads(engine) as conn:
            while self.position < until:
                with reading(conn):
                    page = read_page(
                        conn, self.store, self.projection, self.position, self.page_events
                    )
                    _, skipped = left_out(
                        conn, projection_tables(self.store.schema), *self._version
                    )
                self.skipped = sum(position <= until for position, _ in skipped)
                events = [
                    event
                    for event in page.events
                    if event.position <= until and (event.position, WHOLE_EVENT) not in skipped
                ]
                changes = fold_changes(self.store, self.projection, events)
                content = self.content
                content.take(self._taken(changes.resolved(content.stored(changes.additions()))))
                self.position = min(page.checkpoint, until)
                self.on_page(ProjectionProgress(len(events), self.position, self.position >= until))

    def takes(self, place: Place) -> bool:
        """Return whether this place is compared."""
        return self.sample is None or self.sample.takes(tuple(place))

    def _taken(self, outcome: Outcome) -> Outcome:
        if self.sample is None:
            return outcome
        places = {place: held for place, held in outcome.places.items() if self.takes(place)}
        return Outcome(places, outcome.dropped)

    @property
    def _version(self) -> tuple[str, int]:
        return self.projection.name, self.projection.version


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
            replay.position, replay.content = START, RedisContent()
        if replay.sample is None:
            replay.sample = replay.wanted.of(sum(map(len, stored.values())))
        replay.advance(engine, until=position)
        # Some may have appeared since the keys were listed: look again, with those as well.
        expected = replay.content.structures
        if expected.keys() <= structures:
            sample = replay.sample
            return Verification(
                position,
                sum(map(len, expected.values())),
                _compared(_sampled(stored, replay), expected)[:limit],
                skipped=replay.skipped,
                share=1.0 if sample is None else sample.share,
                seed=None if sample is None else sample.seed,
                checksum=_checksum(expected),
            )
        structures |= expected.keys()


def _sampled(
    stored: dict[Structure, dict[str, str]], replay: RedisReplay
) -> dict[Structure, dict[str, str]]:
    if replay.sample is None:
        return stored
    taken = dict[Structure, dict[str, str]]()
    for structure, held in stored.items():
        members = [one for one in held if replay.takes(Place(*structure, one))]
        taken[structure] = {member: held[member] for member in members}
    return taken


def _checksum(content: dict[Structure, dict[str, str]]) -> str:
    places = sorted(
        (*structure, member, value)
        for structure, held in content.items()
        for member, value in held.items()
    )
    return sha256(repr(places).encode()).hexdigest()[:16]


def _compared(
    stored: dict[Structure, dict[str, str]], expected: dict[Structure, dict[str, str]]
) -> list[Difference]:
    differing = []
    for structure in sorted(stored.keys() | expected.keys()):
        found, wanted = stored.get(structure, {}), expected.get(structure, {})
        differing += [
            Difference((*structure, member), _shown(found, member), _shown(wanted, member))
            for member in sorted(found.keys() | wanted.keys())
            if found.get(member) != wanted.get(member)
        ]
    return differing


def _shown(places: dict[str, str], member: str) -> dict[str, str] | None:
    return {"value": places[member]} if member in places else None
