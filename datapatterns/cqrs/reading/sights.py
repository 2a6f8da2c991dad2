"""What is seen of a read model that somebody waits for, and what follows from it."""

from collections.abc import Hashable
from dataclasses import dataclass

from datapatterns.cqrs.definition import AnyProjection, RedisProjection
from datapatterns.cqrs.reading.stalls import ShardState, Stall, find_stall
from datapatterns.cqrs.reading.tokens import Token, check_end, check_log
from datapatterns.errors import ReadModelBehindError
from datapatterns.event_sourcing.events import Position


@dataclass(frozen=True, slots=True)
class Sight:
    """How far a read model is, in which log; None if nobody asked for that."""

    position: Position | None
    log: str | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What tells why a read model is not further.

    Attributes:
        end: Of the log; None if that cannot be told.
    """

    shards: tuple[ShardState, ...]
    end: Position | None


@dataclass(frozen=True, slots=True)
class Awaited:
    """Which read model has to get where."""

    projection: type[AnyProjection]
    token: Token

    @property
    def kind(self) -> Hashable:
        """What those have in common who see the same in one look."""
        projection = self.projection
        in_redis = issubclass(projection, RedisProjection)
        return projection.name, projection.version, in_redis, self.token.log is None

    def is_reached(self, sight: Sight) -> bool:
        """Return whether everything up to the token shows.

        Raises:
            ForeignTokenError: The token is of another log.
        """
        if sight.log is not None:
            check_log(self.token, sight.log)
        return sight.position is not None and sight.position >= self.token.position

    def stall(self, around: Surroundings) -> Stall | None:
        """Return what keeps it from there; None if it seems to be on its way.

        Raises:
            ForeignTokenError: The token lies beyond the log.
        """
        check_end(self.token.position, around.end)
        return find_stall(
            around.shards,
            self.token.position,
            version=self.projection.version,
            in_table=not issubclass(self.projection, RedisProjection),
        )

    def behind(self, sight: Sight | None, stall: Stall | None) -> ReadModelBehindError:
        """Return the error that says that it is not there."""
        return ReadModelBehindError(
            self.projection.name,
            position=None if sight is None else sight.position,
            token=self.token.position,
            stopped_by=None if stall is None else stall.detail,
            reason="late" if stall is None else stall.reason,
        )
