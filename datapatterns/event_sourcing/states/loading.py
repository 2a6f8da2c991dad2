"""Load streams into states: the latest fitting snapshot and what followed it, in one statement.

Rows are taken from the driver's cursor and events decoded by type: a row of SQLAlchemy costs as
much as decoding an event.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from datapatterns.clock import Clock
from datapatterns.errors import EventGapError
from datapatterns.event_sourcing.content.contents import Contents
from datapatterns.event_sourcing.content.payload import misfit
from datapatterns.event_sourcing.events import VERSION_MAX, Position
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.states.load_statement import (
    MISFIT,
    STREAM,
    TYPE,
    Further,
    further_statement,
    load_statement,
    types_statement,
)
from datapatterns.event_sourcing.states.snapshotting import SnapshotKind, snapshot_kind
from datapatterns.event_sourcing.states.sourced import Sourced
from datapatterns.event_sourcing.states.subjects import (
    Apply,
    Subject,
    apply_of,
    beginning,
    stored_names,
)

PAGE_EVENTS: Final = 10_000
"""How many events a load holds in memory at most."""

KEYS_MAX: Final = 100
"""How many streams one statement loads; of each it reads an equal share of a page."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Moment:
    """Up to where to look: a version of each stream, a time, both, or neither."""

    versions: Sequence[int | None] | None = None
    at: datetime | None = None

    def __post_init__(self) -> None:
        for version in self.versions or ():
            if version is not None and version < 0:
                raise ValueError(f"{version} is no version; ask for 0 or more")
            if version is not None and version > VERSION_MAX:
                raise ValueError("no stream has so many events")
        if self.at is not None and self.at.utcoffset() is None:
            raise ValueError(f"{self.at} has no time zone; give one, so that it is one instant")

    def of(self, start: int, count: int) -> "Moment":
        """Return the moment for ``count`` of the streams, from the one at ``start``."""
        if self.versions is None:
            return self
        return Moment(self.versions[start : start + count], self.at)


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads what one store holds."""

    schema: str
    types: EventTypes
    clock: Clock
    contents: Contents

    def load(
        self,
        conn: Connection,
        subject: Subject,
        keys: Sequence[str],
        moment: Moment,
        tenant: str,
    ) -> list[Sourced]:
        """Do what `EventStore.load` promises, for each of ``keys``, in their order."""
        if moment.versions is not None and len(moment.versions) != len(keys):
            raise ValueError(
                f"{len(moment.versions)} versions for {len(keys)} keys; give one for each,"
                " None for a stream as it is now"
            )
        loaded: list[Sourced] = []
        for start in range(0, len(keys), KEYS_MAX):
            some = keys[start : start + KEYS_MAX]
            began = self.clock.monotonic()
            then = moment.of(start, len(some))
            load = _Load(conn, self, subject, some, tenant, then, PAGE_EVENTS // len(some))
            found = load.run(snapshot_kind(subject, self.types))
            took = self.clock.monotonic() - began
            for sourced in found:
                sourced._history.load_seconds = took / len(found)  # noqa: SLF001 -- its keeper
            loaded += found
        return loaded


class _Row(NamedTuple):
    """See `load_statement`; rows are plain tuples, this only says what is where."""

    place: int
    version: int
    kind: int
    position: int
    content: str


class _Step(NamedTuple):
    """How events of one stored type are read and applied.

    Attributes:
        decode: Reads the class of today at once; None if upcasters lie between.
        read: Reads whatever it is today, and says what is wrong with it.
    """

    decode: Callable[[str], Any] | None
    apply: Apply
    read: Callable[[str], list[Any]]


class _UnusableSnapshotError(Exception):
    """A state cannot be used; the events can."""


@dataclass(slots=True)
class _Load:
    conn: Connection
    by: Loader
    subject: Subject
    keys: Sequence[str]
    tenant: str
    moment: Moment
    limit: int
    names: dict[int, tuple[str, int]] = field(default_factory=dict)
    steps: dict[int, _Step] = field(default_factory=dict)

    def run(self, kind: SnapshotKind | None) -> list[Sourced]:
        rows = self._rows(kind)
        try:
            return self._folded(rows, kind)
        except _UnusableSnapshotError:
            return self.run(None)

    def _rows(self, kind: SnapshotKind | None) -> list[_Row]:
        moment = self.moment
        first = beginning(self.subject, self.keys[0], self.tenant).stream
        return self._fetched(
            load_statement(self.by.schema),
            {
                "tenant": first.tenant,
                "category": first.category,
                "keys": list(self.keys),
                "names": stored_names(self.subject, self.by.types),
                "aggregate": kind and kind.aggregate,
                "fingerprint": kind and kind.fingerprint,
                "versions": moment.versions and list(moment.versions),
                "at": moment.at,
                "limit": self.limit,
                "bound": self.by.contents.needs_ids,
            },
        )

    def _folded(self, rows: list[_Row], kind: SnapshotKind | None) -> list[Sourced]:
        loaded = {
            place: beginning(self.subject, key, self.tenant)
            for place, key in enumerate(self.keys, start=1)
        }
        reached, heads = self._begun(loaded, rows, kind)
        for place, tail in _by_stream(rows[heads:], len(self.keys)):
            if place not in reached:
                raise EventGapError(str(loaded[place].stream), version=1)
            self._fold(loaded[place], tail)
            if len(tail) == self.limit:
                self._read_on(loaded[place], self._until(place, reached[place]))
        for place, sourced in loaded.items():
            self._check_whole(sourced, place, reached.get(place, 0))
        return list(loaded.values())

    def _begun(
        self, loaded: Mapping[int, Sourced], rows: list[_Row], kind: SnapshotKind | None
    ) -> tuple[dict[int, int], int]:
        """Bring states to where events go on; return the streams' versions and the rows used."""
        reached: dict[int, int] = {}
        for count, (place, version, what, position, content) in enumerate(rows):
            if what >= 0:
                return reached, count
            if what == STREAM:
                reached[place] = position
                history = loaded[place]._history  # noqa: SLF001 -- its keeper
                history.version = history.snapshot_version = version
            elif what == TYPE:
                self.names[position] = (content, version)
            else:
                assert kind is not None
                self._restore(loaded[place], _Row(place, version, what, position, content), kind)
        return reached, len(rows)

    def _version(self, place: int) -> int | None:
        """Return the version that is asked for of the stream in that place."""
        return self.moment.versions[place - 1] if self.moment.versions else None

    def _until(self, place: int, reached: int) -> int:
        version = self._version(place)
        return reached if version is None else min(version, reached)

    def _check_whole(self, sourced: Sourced, place: int, reached: int) -> None:
        version = self._version(place)
        if version is not None and version > reached:
            raise ValueError(f"{sourced.stream} is at version {reached}, not yet at {version}")
        if self.moment.at is None and sourced.version < self._until(place, reached):
            raise EventGapError(str(sourced.stream), version=sourced.version + 1)

    def _restore(self, sourced: Sourced, row: _Row, kind: SnapshotKind) -> None:
        known = {"stream": str(sourced.stream), "version": row.version}
        if row.kind == MISFIT:
            # Somebody restored or edited tables.
            logger.warning("snapshot ignored: its event is not in the stream", extra=known)
            raise _UnusableSnapshotError
        history = sourced._history  # noqa: SLF001 -- its keeper
        try:
            state = self.by.contents.incoming_state(
                self.conn,
                row.content,
                bound_to=kind.bound_to(sourced.stream, row.version),
                tenant=sourced.stream.tenant,
                subjects=history.persons,
            )
            if state is not None:
                kind.shape.restore(sourced, state)
        except SQLAlchemyError:  # of a question about keys: the transaction is lost
            raise
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with a copy, there are the events
            reason = (
                misfit(error) if isinstance(error, msgspec.MsgspecError) else type(error).__name__
            )
            logger.warning("snapshot ignored: it cannot be read", extra=known | {"reason": reason})
            raise _UnusableSnapshotError from None
        if state is None:  # it was being written when a person was forgotten
            raise _UnusableSnapshotError
        history.version = history.snapshot_version = row.version
        history.position = Position(row.position)

    def _fold(self, sourced: Sourced, rows: Sequence[_Row]) -> None:
        history, steps = sourced._history, self.steps  # noqa: SLF001 -- its keeper
        expected = history.version
        history.is_folding = True  # until all is applied; a state that raised is thrown away
        texts = self.by.contents.incoming(
            self.conn,
            [row[4] for row in rows],
            tenant=history.stream.tenant,
            subjects=history.persons,
        )
        for (_, version, kind, _, _), text in zip(rows, texts, strict=True):
            expected += 1
            if version != expected:
                raise EventGapError(str(sourced.stream), version=expected)
            step = steps.get(kind)
            if step is None:
                step = self._step(kind, rows)
            decode, apply, read = step
            if decode is None:
                for event in read(text):
                    apply(sourced, event)
            else:
                try:
                    event = decode(text)
                except (msgspec.DecodeError, RecursionError):
                    [event] = read(text)  # says what is wrong
                apply(sourced, event)
            history.version = version  # after it was applied, as when it was emitted
        history.is_folding = False
        history.position = Position(rows[-1][3])
        self._note(sourced, texts, {row[2] for row in rows})

    def _note(self, sourced: Sourced, texts: Sequence[str], kinds: Iterable[int]) -> None:
        policy = self.subject.snapshot_policy
        if policy is None:
            return
        if policy.size_bytes is not None:
            sourced._history.loaded_bytes += sum(map(len, texts))  # noqa: SLF001 -- its keeper
        if policy.types:
            fates = [self.by.types.fate(*self.names[kind]) for kind in kinds]
            found = {declared.cls for fate in fates for declared in fate.classes}
            sourced._history.folded |= found & policy.types  # noqa: SLF001 -- its keeper

    def _read_on(self, sourced: Sourced, until: int) -> None:
        stream = sourced.stream
        how = Further(self.moment.at is not None, self.by.contents.needs_ids)
        while sourced.version < until:
            rows: list[_Row] = self._fetched(
                further_statement(self.by.schema, how),
                {
                    "tenant": stream.tenant,
                    "category": stream.category,
                    "key": stream.key,
                    "after": sourced.version,
                    "version": until,
                    "at": self.moment.at,
                    "limit": PAGE_EVENTS,
                },
            )
            if not rows:
                break
            self._fold(sourced, sorted(rows, key=itemgetter(1)))

    def _step(self, type_id: int, rows: Sequence[_Row]) -> _Step:
        if type_id not in self.names:  # of a name that no class of the subject goes by
            ids = sorted({row[2] for row in rows} - self.names.keys())
            for id_, name, version in self._fetched(types_statement(self.by.schema), {"ids": ids}):
                self.names[id_] = (name, version)
        name, version = self.names[type_id]
        reader = self.by.types.reader(name, version)
        apply: Apply = _refusing
        decode = None
        if reader.decoder is not None:
            [declared] = self.by.types.fate(name, version).classes
            apply = apply_of(self.subject, declared.cls) or _refusing
            decode = reader.decoder.decode
        step = self.steps[type_id] = _Step(decode, apply, reader.from_json)
        return step

    def _fetched(self, statement: str, parameters: dict[str, Any]) -> list[Any]:
        result = self.conn.exec_driver_sql(statement, parameters)
        assert result.cursor is not None
        rows: list[Any] = list(result.cursor.fetchall())
        result.close()
        return rows


def _by_stream(rows: list[_Row], streams: int) -> Iterator[tuple[int, Sequence[_Row]]]:
    if streams == 1:
        return iter([(1, rows)] if rows else [])
    return ((place, list(of_one)) for place, of_one in groupby(rows, key=itemgetter(0)))


def _refusing(sourced: Any, event: object) -> None:  # noqa: ANN401 -- whatever was loaded
    sourced._apply(event)  # noqa: SLF001 -- it finds the handler, or says which one is missing
