"""Which stored events a statement may read as what they are declared to be; the others stop it."""

from collections.abc import Iterable
from dataclasses import dataclass

from datapatterns.cqrs.set_definition import Reads, StoredShape
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.evolution.evolving import EventType, Verdict


@dataclass(frozen=True, slots=True)
class ReadShapes:
    """What a projection reads, in terms of what is stored.

    Attributes:
        names: Under which events may be stored that concern it.
        as_stored: What it takes as it is.
        current: What it takes because it has the shape of a class of today.
    """

    names: frozenset[str]
    as_stored: frozenset[StoredShape]
    current: frozenset[EventType]
    types: EventTypes

    def takes(self, stored: StoredShape) -> bool:
        """Return whether events of this shape are given to the statements."""
        return stored in self.as_stored or (
            any(stored == _shape_of(known) for known in self.current)
            and self.objection(stored) is None
        )

    def objection(self, stored: StoredShape) -> str | None:
        """Return why no statement can read events of this shape; None if none has to.

        That is also None where they are read as they are, or concern it as little as events that
        were dropped.
        """
        if stored in self.as_stored or not self._concerns(stored):
            return None
        why = self._obstacle(stored)
        return why and (
            f"{why}; fold it in Python by a Projection, or read {stored!r} if the statements know"
            " what is stored"
        )

    def _concerns(self, stored: StoredShape) -> bool:
        if any(shape.name == stored.name for shape in self.as_stored):
            return True  # whoever reads one version as it is has to know of the others
        verdict, classes, *_ = self.types.fate(stored.name, stored.version)
        elsewhere = verdict is Verdict.READABLE and self.current.isdisjoint(classes)
        return verdict is not Verdict.DROPPED and not elsewhere

    def _obstacle(self, stored: StoredShape) -> str | None:
        fate = self.types.fate(stored.name, stored.version)
        ours = self.current.intersection(fate.classes)
        if any(stored == _shape_of(known) for known in ours):
            if self.types.personal_plan(stored.name, stored.version) is None:
                return None
            return "its personal fields are encrypted, and SQL does not decrypt them"
        if not ours:
            why = fate.reason or "it reads other versions of that name only"
            return f"it is stored in version {stored.version}: {why}"
        today = " or ".join(sorted(f"{one.name} version {one.schema_version}" for one in ours))
        return f"it is stored in version {stored.version}, which only Python lifts to {today}"


def shapes_read(reads: Reads, types: EventTypes) -> ReadShapes:
    """Return what ``reads`` means for a store that knows ``types``.

    Raises:
        EventTypeError: A class is not declared.
    """
    classes = [one for one in reads if not isinstance(one, StoredShape)]
    as_stored = frozenset(one for one in reads if isinstance(one, StoredShape))
    names = {shape.name for shape in as_stored}.union(*map(types.stored_names, classes))
    return ReadShapes(frozenset(names), as_stored, _declared(classes, types), types)


def _declared(classes: Iterable[type], types: EventTypes) -> frozenset[EventType]:
    return frozenset(types.of(cls) for cls in classes)


def _shape_of(declared: EventType) -> StoredShape:
    return StoredShape(declared.name, declared.schema_version)
