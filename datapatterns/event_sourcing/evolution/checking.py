"""Whether this code can read every type of event that was ever stored, without reading events."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from datapatterns.errors import DataPatternsError
from datapatterns.event_sourcing.events import Position, StreamId
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.evolution.evolving import Verdict

PASSING = frozenset({Verdict.READABLE, Verdict.DROPPED})


class StoredType(NamedTuple):
    """A type of event as the database knows it.

    Attributes:
        events: How many are stored; None if they were not counted.
    """

    name: str
    schema_version: int
    events: int | None = None


@dataclass(frozen=True, slots=True)
class TypeFinding:
    """What becomes of one stored type.

    Attributes:
        becomes: The names of the types that it is read as today.
        events: How many are stored; None if they were not counted.
        reason: Why it cannot be read, with what to do; of a dropped one, why it was dropped.
    """

    event_type: str
    schema_version: int
    verdict: Verdict
    becomes: tuple[str, ...]
    events: int | None
    reason: str

    @property
    def ok(self) -> bool:
        """Whether it can be read, or is passed over on purpose."""
        return self.verdict in PASSING

    def __str__(self) -> str:
        named = f"{self.event_type} version {self.schema_version}"
        counted = "" if self.events is None else f" ({self.events} events)"
        into = f" as {', '.join(self.becomes)}" if self.becomes else ""
        return f"{named}{counted}: {self.verdict.value}{into}{self.reason and f': {self.reason}'}"


class Sample(NamedTuple):
    """Where a stored event is."""

    event_type: str
    schema_version: int
    stream: StreamId
    version: int
    position: Position


@dataclass(frozen=True, slots=True)
class MisreadEvent:
    """A stored event that was tried and cannot be read.

    Attributes:
        event: Which.
        reason: What went wrong, without the data.
    """

    event: Sample
    reason: str

    def __str__(self) -> str:
        name, schema_version, stream, version, position = self.event
        return (
            f"{name} version {schema_version} at position {position} ({stream}, version {version})"
            f" cannot be read: {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class HandlerGap:
    """A type that occurs in streams whose handler does not know it.

    Attributes:
        handler: Of whom it was asked.
        lacks: The names of the types, as they are today, without a handler.
    """

    handler: str
    category: str
    event_type: str
    schema_version: int
    lacks: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.handler} has no handler for {', '.join(self.lacks)}, stored in streams of"
            f" {self.category} as {self.event_type} version {self.schema_version}; add one, empty"
            " if it changes nothing"
        )


@dataclass(frozen=True, slots=True)
class EventCheck:
    """What `check_events` found.

    Attributes:
        types: Every type that is stored, by name and version.
        misread: Events that were tried and cannot be read.
        gaps: Types without a handler where they occur.
        tried: How many events were read.
        untried: Types of which no event was met within ``reach``, if events were to be tried.
    """

    types: tuple[TypeFinding, ...]
    misread: tuple[MisreadEvent, ...] = ()
    gaps: tuple[HandlerGap, ...] = ()
    tried: int = 0
    untried: tuple[TypeFinding, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether this code may be deployed on this database."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each: types first, then events, then handlers."""
        failing = [finding for finding in self.types if not finding.ok]
        return [str(one) for one in (*failing, *self.misread, *self.gaps)]

    @property
    def summary(self) -> str:
        """All of it in one line."""
        counts = [
            f"{sum(one.verdict is verdict for one in self.types)} {verdict.value}"
            for verdict in Verdict
            if any(one.verdict is verdict for one in self.types)
        ]
        parts = [f"{len(self.types)} types stored{': ' if counts else ''}{', '.join(counts)}"]
        if self.tried or self.untried:
            parts.append(f"{self.tried} events tried, {len(self.misread)} cannot be read")
        if self.gaps:
            parts.append(f"{len(self.gaps)} without a handler")
        return "; ".join(parts)


def judge_types(stored: Iterable[StoredType], types: EventTypes) -> tuple[TypeFinding, ...]:
    """Return what becomes of each stored type, by name and version."""
    findings = []
    for name, version, events in sorted(stored):
        fate = types.fate(name, version)
        reason = fate.reason
        if fate.verdict not in PASSING and fate.at != (name, version):
            reason = f"it is read as {fate.at}: {reason}"
        becomes = tuple(declared.name for declared in fate.classes)
        findings.append(TypeFinding(name, version, fate.verdict, becomes, events, reason))
    return tuple(findings)


def judge_handlers(
    handled: Mapping[tuple[str, str], Iterable[type]],
    occurring: Iterable[tuple[str, str, int]],
    types: EventTypes,
) -> tuple[HandlerGap, ...]:
    """Return which of the types that occur in streams nobody handles there.

    Args:
        handled: The classes that have a handler, by who handles them and the category.
        occurring: Category, name and version of what is stored.
        types: Where the classes are declared.
    """
    return tuple(_gaps(handled, sorted(occurring), types))


def try_events(
    samples: Iterable[Sample], read: Callable[[Sample], object | None]
) -> tuple[set[tuple[str, int]], int, tuple[MisreadEvent, ...]]:
    """Read events as a program would; return which types, how many, and what cannot be read.

    Args:
        samples: Which events.
        read: Reads one and makes it typed; None if it is not there any more.
    """
    met, tried, misread = set[tuple[str, int]](), 0, []
    for sample in samples:
        try:
            if read(sample) is None:
                continue
        except Exception as error:  # noqa: BLE001 -- the application's code may raise anything
            # What this library says holds no data; another's message may quote it.
            known = isinstance(error, DataPatternsError)
            reason = (getattr(error, "reason", None) or str(error)) if known else None
            misread.append(MisreadEvent(sample, reason or type(error).__name__))
        met.add((sample.event_type, sample.schema_version))
        tried += 1
    return met, tried, tuple(misread)


def _gaps(
    handled: Mapping[tuple[str, str], Iterable[type]],
    occurring: list[tuple[str, str, int]],
    types: EventTypes,
) -> Iterator[HandlerGap]:
    for (handler, category), classes in handled.items():
        known = set(classes)
        for of, name, version in occurring:
            fate = types.fate(name, version)
            lacks = tuple(one.name for one in fate.classes if one.cls not in known)
            if of == category and lacks:
                yield HandlerGap(handler, category, name, version, lacks)
