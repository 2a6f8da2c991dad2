"""Fold each page of the log several times from the same state, into temporary tables."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from datapatterns.cqrs.definition import Projection
from datapatterns.cqrs.determinism.in_memory import State, difference_of, state_of
from datapatterns.cqrs.determinism.other_process import OtherProcess, UntriedError
from datapatterns.cqrs.determinism.reports import Unsteady
from datapatterns.cqrs.determinism.watching import watched_instance
from datapatterns.cqrs.running.progress import longest_prefix
from datapatterns.cqrs.tables.folding import (
    RowsByTable,
    fold_steps,
    keys_by_table,
    plan_steps,
)
from datapatterns.cqrs.tables.leaving_out import LeftOut
from datapatterns.cqrs.tables.projecting import (
    UnappliableError,
    blaming_data,
    describe_stop,
    find_poison,
    write_rows,
)
from datapatterns.cqrs.tables.read_model import ReadModels, read_models_of
from datapatterns.event_sourcing.log.decoding import decode_each
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore
from datapatterns.purity import watched

_PIECES: Final = 8
"""Into how many smaller pages a page is cut."""


class _Folded(NamedTuple):
    """What rows held, what methods made of them, and what the database made of that.

    Attributes:
        before: As another process is to begin with; nothing if there is none.
        left_out: Of these events.
    """

    before: State
    left_out: LeftOut
    made: State
    stored: State


class _DiffersError(Exception):
    def __init__(self, place: tuple[str, Hashable], first: State, second: State) -> None:
        super().__init__(str(place))
        self.place = place
        self.first = first
        self.second = second


Trial = Callable[[Connection, Sequence[RecordedEvent], _Folded], tuple[State, State]]
"""Folds events a second time; returns what came of it the first time, and now."""


@dataclass(slots=True)
class TableTrials:
    """Folds into ``models``, which hold what the events before have made.

    Attributes:
        left_out: What the read model was not to show.
        other: Where else to fold; None if nowhere.
        impure: What was asked of the clock or of chance, and where.
        untried: Why the other process has not folded.
    """

    store: EventStore
    projection: type[Projection]
    models: ReadModels
    left_out: LeftOut
    other: OtherProcess | None = None
    impure: dict[str, None] = field(default_factory=dict)
    untried: str | None = None

    def page(self, conn: Connection, events: Sequence[RecordedEvent]) -> Unsteady | None:
        """Fold ``events`` in the caller's transaction; return the first that gave two things.

        Raises:
            ProjectionStoppedError: One of them cannot be applied.
        """
        events = self.left_out.events(events)
        try:
            for name, trial in self._trials(len(events)):
                length, error = longest_prefix(
                    len(events), partial(self._attempt, conn, events, trial)
                )
                if isinstance(error, _DiffersError):
                    return self._described(name, events[length], error)
            self._fold(conn, events)
        except UnappliableError as failure:
            raise self._stopped(conn, events) from failure
        return None

    def _trials(self, events: int) -> list[tuple[str, Trial]]:
        trials: list[tuple[str, Trial]] = [("again", self._again)]
        if events > 1:
            piece = max(1, events // _PIECES)
            trials.append(("in smaller pages", partial(self._in_pieces, piece)))
        if self.other is not None:
            trials.append(("in another process", partial(self._elsewhere, self.other)))
        return trials

    def _attempt(
        self,
        conn: Connection,
        events: Sequence[RecordedEvent],
        trial: Trial,
        length: int,
    ) -> Exception | None:
        first_events = events[:length]
        with undone(conn):
            once = self._fold(conn, first_events)
        first, second = trial(conn, first_events, once)
        place = difference_of(first, second)
        return None if place is None else _DiffersError(place, first, second)

    def _again(
        self, conn: Connection, events: Sequence[RecordedEvent], once: _Folded
    ) -> tuple[State, State]:
        with undone(conn):
            return once.stored, self._fold(conn, events, watch=True).stored

    def _in_pieces(
        self, piece: int, conn: Connection, events: Sequence[RecordedEvent], once: _Folded
    ) -> tuple[State, State]:
        second: State = {}
        with undone(conn):
            for begin in range(0, len(events), piece):
                second |= self._fold(conn, events[begin : begin + piece]).stored
        return once.stored, second

    def _elsewhere(
        self,
        other: OtherProcess,
        _conn: Connection,
        events: Sequence[RecordedEvent],
        once: _Folded,
    ) -> tuple[State, State]:
        decoded = [(event, meta) for event, meta in decode_each(self.store.types, events)]
        try:
            return once.made, other.rows(decoded, once.before, once.left_out)
        except UntriedError as error:
            self.other, self.untried = None, str(error)
            return {}, {}

    def _fold(
        self, conn: Connection, events: Sequence[RecordedEvent], *, watch: bool = False
    ) -> _Folded:
        with blaming_data():
            instance = (
                watched_instance(self.projection, self._notice) if watch else self.projection()
            )
            decoded = list(decode_each(self.store.types, events))
            planned = plan_steps(instance, decoded)
            left = self.left_out.within(planned) if self.left_out else self.left_out
            steps = [step for step in planned if left.takes(step)] if left else planned
            keys = keys_by_table(steps)
            rows = {table: self.models[table].fetch(conn, of) for table, of in keys.items()}
            # Methods may change in place what the rows hold.
            before = deepcopy(state_of(self.projection, rows)) if self.other else {}
            new_row = {
                table: watched(model.new_row, self._notice) if watch else model.new_row
                for table, model in self.models.items()
            }
            fold_steps(instance, steps, rows, new_row=new_row)
            made = state_of(self.projection, rows)
            write_rows(conn, self.models, rows)
        return _Folded(before, left, made, self._stored(conn, rows))

    def _fold_only(self, conn: Connection, events: Sequence[RecordedEvent]) -> None:
        self._fold(conn, events)

    def _stored(self, conn: Connection, rows: RowsByTable) -> State:
        now: RowsByTable = {}
        for table, of_table in rows.items():
            found = self.models[table].fetch(conn, of_table)
            now[table] = {key: found.get(key) for key in of_table}
        return state_of(self.projection, now)

    def _notice(self, what: str) -> None:
        self.impure[what] = None

    def _described(self, trial: str, event: RecordedEvent, error: _DiffersError) -> Unsteady:
        name, key = error.place
        names = {model.table.name: model for model in read_models_of(self.projection).values()}
        model = names[name]
        rest = [c.name for c in model.columns][model.key_length :]

        def shown(state: State) -> dict[str, Any] | None:
            values = state.get(error.place)
            if values is None:
                return None
            return dict(zip(rest, values[model.key_length :], strict=True))

        return Unsteady(
            trial,
            key if model.key_length > 1 and isinstance(key, tuple) else (key,),
            shown(error.first),
            shown(error.second),
            event.position,
            event.event_type,
            name,
        )

    def _stopped(self, conn: Connection, events: Sequence[RecordedEvent]) -> Exception:
        length, error = find_poison(conn, events, partial(self._fold_only, conn))
        if error is None:
            return UnappliableError()
        return describe_stop(self.projection, events[length], error)[1]


@contextmanager
def undone(conn: Connection) -> Iterator[None]:
    """Take back what the block does."""
    savepoint = conn.begin_nested()
    try:
        yield
    finally:
        savepoint.rollback()
