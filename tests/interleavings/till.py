"""A till whose events go into read models, one product for each schedule."""

from uuid import uuid4

from sqlalchemy import Engine, text

from datapatterns.cqrs import Projection, Projections, RedisProjection
from datapatterns.event_sourcing import ANY, EventStore, Position, StreamId
from tests.fixtures.read_models import ItemScanned

STORE = EventStore()
LAPSE = text(
    "UPDATE datapatterns.projection_shard SET lease_until = clock_timestamp() - interval '1 second'"
    " WHERE lease_until IS NOT NULL"
)

WITHOUT_FENCING = (
    " AND datapatterns.projection_shard.epoch = %(epoch)s::BIGINT"
    " AND datapatterns.projection_shard.position = %(before)s::BIGINT"
)
"""What a page's checkpoint is compared with; it fences off those who have lost their lease."""


class Till:
    """Scans items of one product, and knows how many.

    Attributes:
        product: Of this schedule.
    """

    def __init__(
        self,
        plain: Engine,
        projections: Projections,
        projection: type[Projection | RedisProjection],
    ) -> None:
        self._plain, self._projections, self._projection = plain, projections, projection
        self._begin = Position(0)
        self.product = ""

    def open(self, *, scanned: int) -> None:
        """Begin a schedule: a new product, so often scanned that nobody has projected it yet."""
        self.settle()
        self.product = uuid4().hex[:20]
        with self._plain.begin() as conn:
            self._begin = STORE.high_water_mark(conn)
        for _ in range(scanned):
            self.scan(self._plain)

    def scan(self, engine: Engine) -> Position:
        with engine.begin() as conn:
            stream = StreamId("till", self.product)
            events = [ItemScanned(self.product, 1)]
            return STORE.append(conn, stream, events, expected_version=ANY).position

    def settle(self) -> None:
        """Let the leases of the dead lapse, and project what is left."""
        self.let_leases_lapse(self._plain)
        self._projections.catch_up(self._plain, self._projection)

    def let_leases_lapse(self, engine: Engine) -> None:
        """Do what time does in the end."""
        with engine.begin() as conn:
            conn.execute(LAPSE)

    def scanned(self) -> int:
        with self._plain.begin() as conn:
            return len(STORE.read_log(conn, self._begin).events)

    def scanned_up_to(self, position: Position) -> int:
        with self._plain.begin() as conn:
            events = STORE.read_log(conn, self._begin).events
        return sum(recorded.position <= position for recorded in events)
