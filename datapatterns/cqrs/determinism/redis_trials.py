"""Fold each page of the log several times from the same state, in memory as Redis would hold it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from datapatterns.cqrs.definition import RedisProjection
from datapatterns.cqrs.determinism.in_memory import Decoded, fold_places
from datapatterns.cqrs.determinism.other_process import OtherProcess, UntriedError
from datapatterns.cqrs.determinism.reports import Unsteady
from datapatterns.cqrs.in_redis.redis_content import RedisContent
from datapatterns.cqrs.in_redis.redis_keys import Place
from datapatterns.cqrs.running.progress import longest_prefix
from datapatterns.cqrs.tables.projecting import describe_stop
from datapatterns.event_sourcing.log.decoding import decode_each
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore

_PIECES: Final = 8
"""Into how many smaller pages a page is cut."""


class _DiffersError(Exception):
    def __init__(self, place: Place, first: str | None, second: str | None) -> None:
        super().__init__(str(place))
        self.place = place
        self.first = first
        self.second = second


Trial = Callable[[Sequence[RecordedEvent]], RedisContent | None]
"""Folds events once more; None if that could not be done."""


@dataclass(slots=True)
class RedisTrials:
    """Folds into ``content``, which is what the events before have made.

    Attributes:
        other: Where else to fold; None if nowhere.
        impure: What was asked of the clock or of chance, and where.
        untried: Why the other process has not folded.
    """

    store: EventStore
    projection: type[RedisProjection]
    other: OtherProcess | None = None
    content: RedisContent = field(default_factory=RedisContent)
    impure: dict[str, None] = field(default_factory=dict)
    untried: str | None = None

    def page(self, events: Sequence[RecordedEvent]) -> Unsteady | None:
        """Fold ``events``; return the first that gave two things.

        Raises:
            ProjectionStoppedError: One of them cannot be applied.
        """
        try:
            after = self._folded(events)
        except Exception as error:
            raise self._stopped(events, error) from error
        trials: list[tuple[str, Trial]] = [("again", self._again)]
        if len(events) > 1:
            piece = max(1, len(events) // _PIECES)
            trials.append(("in smaller pages", partial(self._in_pieces, piece)))
        if self.other is not None:
            trials.append(("in another process", partial(self._elsewhere, self.other)))
        for name, trial in trials:
            length, differs = longest_prefix(len(events), partial(self._attempt, events, trial))
            if isinstance(differs, _DiffersError):
                return _described(name, events[length], differs)
        self.content = after
        return None

    def _attempt(
        self, events: Sequence[RecordedEvent], trial: Trial, length: int
    ) -> Exception | None:
        first, second = self._folded(events[:length]), trial(events[:length])
        if second is None or first == second:
            return None
        left, right = first.places(), second.places()
        place = next(p for p in [*left, *right] if left.get(p) != right.get(p))
        return _DiffersError(place, left.get(place), right.get(place))

    def _again(self, events: Sequence[RecordedEvent]) -> RedisContent:
        after = self._copied()
        decoded = self._decoded(events)
        after.take(fold_places(self.projection, decoded, after.stored, notice=self._notice))
        return after

    def _in_pieces(self, piece: int, events: Sequence[RecordedEvent]) -> RedisContent:
        after = self._copied()
        for begin in range(0, len(events), piece):
            decoded = self._decoded(events[begin : begin + piece])
            after.take(fold_places(self.projection, decoded, after.stored))
        return after

    def _elsewhere(
        self, other: OtherProcess, events: Sequence[RecordedEvent]
    ) -> RedisContent | None:
        after, asked = self._copied(), dict[Place, str]()

        def stored(places: Iterable[Place]) -> dict[Place, str]:
            asked.update(after.stored(places))
            return asked

        decoded = self._decoded(events)
        fold_places(self.projection, decoded, stored)
        try:
            after.take(other.places(self._decoded(events), asked))
        except UntriedError as error:
            self.other, self.untried = None, str(error)
            return None
        return after

    def _folded(self, events: Sequence[RecordedEvent]) -> RedisContent:
        after = self._copied()
        after.take(fold_places(self.projection, self._decoded(events), after.stored))
        return after

    def _copied(self) -> RedisContent:
        return RedisContent({of: dict(held) for of, held in self.content.structures.items()})

    def _decoded(self, events: Sequence[RecordedEvent]) -> Decoded:
        return list(decode_each(self.store.types, events))

    def _notice(self, what: str) -> None:
        self.impure[what] = None

    def _stopped(self, events: Sequence[RecordedEvent], error: Exception) -> Exception:
        def attempt(length: int) -> Exception | None:
            try:
                self._folded(events[:length])
            except Exception as failed:  # noqa: BLE001 -- the application's code may raise anything
                return failed
            return None

        length, failed = longest_prefix(len(events), attempt)
        if failed is None:
            return error
        return describe_stop(self.projection, events[length], failed)[1]


def _described(trial: str, event: RecordedEvent, error: _DiffersError) -> Unsteady:
    def shown(value: str | None) -> dict[str, str] | None:
        return None if value is None else {"value": value}

    return Unsteady(
        trial,
        tuple(error.place),
        shown(error.first),
        shown(error.second),
        event.position,
        event.event_type,
    )
