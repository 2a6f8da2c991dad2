"""What becomes of a stored event today: which steps lead from its shape to a current class.

A shape is a name with a version. Upcasters, renames and dropped names lead from one shape to the
next; the graph has no cycles, so every way ends: at a class, at nothing, or where something is
missing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from datapatterns.errors import EventShapeError, EventTypeError
from datapatterns.event_sourcing.content.shapes import Decoder
from datapatterns.event_sourcing.persons.personal import PersonalPlan

Upcaster = Callable[[dict[str, Any]], dict[str, Any] | list[dict[str, Any]] | None]
"""Takes the data of one version; returns that of the next, of several, or None to drop it."""

Splitter = Callable[[dict[str, Any]], list[tuple[str, dict[str, Any]]]]
"""Takes the data of one version; returns names with data, each in the version declared for it."""


class Shape(NamedTuple):
    """A type of event in one version, as it is or was stored."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


@dataclass(frozen=True, slots=True)
class EventType:
    """A declared type of event.

    Attributes:
        name: What is stored for it today.
        schema_version: Of its current shape.
        tags: What derives the tags of an event from the event; None if it has none.
        personal: Where its personal fields lie; None if it has none.
    """

    name: str
    schema_version: int
    cls: type
    decoder: Decoder = field(repr=False, compare=False)
    tags: Callable[[Any], tuple[str, ...]] | None = field(default=None, repr=False, compare=False)
    personal: PersonalPlan | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> Shape:
        """Its current shape."""
        return Shape(self.name, self.schema_version)


@dataclass(frozen=True, slots=True)
class Step:
    """An upcaster, and the shapes that it leads to; a plain one leads to one."""

    function: Callable[[dict[str, Any]], Any]
    targets: Mapping[str, Shape]
    is_plain: bool


@dataclass(frozen=True, slots=True)
class Rename:
    """From this version on, what was stored under the old name is read as the new one."""

    to: str
    from_version: int


class Verdict(Enum):
    """What becomes of a stored type of event."""

    READABLE = "readable"
    """It leads to classes of today."""

    DROPPED = "dropped"
    """It is read as nothing, because a declaration says so."""

    UNKNOWN = "unknown"
    """No class, rename, upcaster or drop is declared for a name."""

    TOO_NEW = "too new"
    """Newer code has stored it."""

    NO_UPCASTER = "no upcaster"
    """No upcaster leads on from a version."""


class Fate(NamedTuple):
    """What becomes of a stored shape.

    Attributes:
        verdict: The worst of all its ways.
        classes: The declared types that it can become, by name.
        at: The shape where nothing leads on; otherwise the stored one.
        reason: Why, with what to do; empty if it is readable.
    """

    verdict: Verdict
    classes: tuple[EventType, ...]
    at: Shape
    reason: str = ""

    def error(self) -> EventTypeError | EventShapeError:
        """Return what a reader has to raise."""
        if self.verdict is Verdict.UNKNOWN:
            return EventTypeError(self.at.name, self.reason)
        return EventShapeError(self.at.name, schema_version=self.at.version, reason=self.reason)


class Ancestor(NamedTuple):
    """A shape that leads to a class, and how: what a copy of the class's state depends on."""

    shape: Shape
    leads_to: tuple[Shape, ...]
    function: Callable[..., Any] | None


class Declarations:
    """All that is declared about types of events; what contradicts itself is refused."""

    def __init__(self) -> None:
        self.types: dict[str, EventType] = {}
        self.steps: dict[Shape, Step] = {}
        self.renames: dict[str, Rename] = {}
        self.drops: dict[str, str] = {}
        # Kept, not searched for: programs declare hundreds of types when they start.
        self._lifted: dict[str, set[int]] = {}
        self._before: dict[str, set[str]] = {}
        self._versions = {1}

    def copy(self) -> "Declarations":
        """Return the same declarations, apart from later ones."""
        copied = Declarations()
        copied.types, copied.steps = dict(self.types), dict(self.steps)
        copied.renames, copied.drops = dict(self.renames), dict(self.drops)
        copied._lifted = {name: set(versions) for name, versions in self._lifted.items()}
        copied._before = {name: set(names) for name, names in self._before.items()}
        copied._versions = set(self._versions)
        return copied

    def add_type(self, declared: EventType) -> None:
        """Declare a class.

        Raises:
            EventTypeError: Its name was given away.
        """
        self._refuse_gone(declared.name)
        self.types[declared.name] = declared
        self._versions.add(declared.schema_version)

    def add_step(self, shape: Shape, step: Step) -> None:
        """Declare an upcaster.

        Raises:
            EventTypeError: No event comes by, or it leads back to where it begins.
        """
        if shape.name in self.drops:
            raise EventTypeError(shape.name, "is dropped, so an upcaster never runs; remove one")
        rename = self.renames.get(shape.name)
        if rename is not None and shape.version >= rename.from_version:
            raise EventTypeError(
                shape.name,
                f"is renamed to {rename.to!r} from version {rename.from_version}, so its upcaster"
                f" from version {shape.version} never runs; register it for {rename.to!r}",
            )
        for target in step.targets.values():
            self._refuse_cycle(shape, target)
        self.steps[shape] = step
        self._lifted.setdefault(shape.name, set()).add(shape.version)
        for target in step.targets.values():
            self._before.setdefault(target.name, set()).add(shape.name)
            self._versions.update((shape.version, target.version))

    def add_rename(self, old: str, rename: Rename) -> None:
        """Declare that an old name is read as another.

        Raises:
            EventTypeError: The old name means something else, or comes back to itself.
        """
        if old in self.types or self.renames.get(old, rename) != rename:
            raise EventTypeError(
                old,
                f"cannot be renamed to {rename.to!r}: it is declared, or renamed otherwise;"
                " keep one",
            )
        if old in self.drops:
            raise EventTypeError(old, f"is dropped and renamed to {rename.to!r}; keep one")
        idle = [v for v in sorted(self._lifted.get(old, ())) if v >= rename.from_version]
        if idle:
            raise EventTypeError(
                old,
                f"is renamed to {rename.to!r} from version {rename.from_version}, so its upcaster"
                f" from version {idle[0]} never runs; register it for {rename.to!r}",
            )
        self._versions.add(rename.from_version)
        for version in self._versions_from(rename.from_version):
            self._refuse_cycle(Shape(old, version), Shape(rename.to, version))
        self.renames[old] = rename
        self._before.setdefault(rename.to, set()).add(old)

    def add_drop(self, name: str, reason: str) -> None:
        """Declare that stored events of this name are read as nothing.

        Raises:
            EventTypeError: The name means something.
        """
        if name in self.types or name in self.renames or name in self._lifted:
            raise EventTypeError(
                name, "cannot be dropped: it has a class, another name or an upcaster; keep one"
            )
        self.drops[name] = reason

    def follow(self, shape: Shape) -> Step | Fate | Shape:
        """Return what comes next: another shape, a step to others, or the end."""
        name, version = shape
        if name in self.drops:
            return Fate(Verdict.DROPPED, (), shape, self.drops[name])
        rename = self.renames.get(name)
        if rename is not None and version >= rename.from_version:
            return Shape(rename.to, version)
        declared = self.types.get(name)
        if declared is not None and version == declared.schema_version:
            return Fate(Verdict.READABLE, (declared,), shape)
        latest = declared.schema_version if declared else self._last_step(name)
        if declared is None and rename is None and not latest:
            return Fate(
                Verdict.UNKNOWN,
                (),
                shape,
                f'is stored but not declared; declare a class with @event("{name}"), or say what'
                " became of it with renamed() or dropped()",
            )
        if rename is None and version > latest:
            return Fate(
                Verdict.TOO_NEW,
                (),
                shape,
                f"this code knows versions up to {latest}; deploy the code that wrote it",
            )
        step = self.steps.get(shape)
        return step or Fate(Verdict.NO_UPCASTER, (), shape, "no upcaster leads on")

    def fate(self, shape: Shape) -> Fate:
        """Return what becomes of a stored shape; the worst, if it becomes several things."""
        ends = [end for at in self.way(shape) if isinstance(end := self.follow(at), Fate)]
        for end in ends:
            if end.verdict not in {Verdict.READABLE, Verdict.DROPPED}:
                return end
        found = {declared.name: declared for end in ends for declared in end.classes}
        if found:
            return Fate(Verdict.READABLE, tuple(found[name] for name in sorted(found)), shape)
        return ends[0]._replace(at=shape)

    def way(self, shape: Shape) -> Iterator[Shape]:
        """Yield every shape that comes after ``shape``, itself first, each once."""
        seen, waiting = {shape}, [shape]
        while waiting:
            at = waiting.pop()
            yield at
            fresh = [after for after in self._after(at) if after not in seen]
            seen.update(fresh)
            waiting += fresh

    def latest_version(self, name: str) -> int:
        """Do what `EventTypes.latest_version` promises."""
        if name in self.drops:
            return 0
        if name in self.renames:
            return self.renames[name].from_version - 1
        if name in self.types:
            return self.types[name].schema_version
        latest = self._last_step(name)
        if not latest:
            raise self.fate(Shape(name, 1)).error()
        return latest

    def named_today(self, shape: Shape) -> Shape:
        """Return the shape after all renames, without a step."""
        while isinstance(after := self.follow(shape), Shape):
            shape = after
        return shape

    def ancestors(self, declared: EventType) -> list[Ancestor]:
        """Return every shape that can lead to a class, in the order of their names."""
        end = Shape(declared.name, declared.schema_version)
        found = []
        for shape in sorted(self._leading(self._names_before(declared.name))):
            after = self.follow(shape)
            if not isinstance(after, Fate) and end in self.way(shape):
                function = after.function if isinstance(after, Step) else None
                found.append(Ancestor(shape, tuple(self._after(shape)), function))
        return found

    def _after(self, shape: Shape) -> list[Shape]:
        after = self.follow(shape)
        if isinstance(after, Shape):
            return [after]
        return list(after.targets.values()) if isinstance(after, Step) else []

    def _last_step(self, name: str) -> int:
        return max(self._lifted.get(name, ()), default=0)

    def _refuse_gone(self, name: str) -> None:
        if name in self.renames:
            raise EventTypeError(
                name,
                f"is the old name of {self.renames[name].to!r}; a new type of event needs a name"
                " that was never stored",
            )
        if name in self.drops:
            raise EventTypeError(name, "is dropped; remove dropped() to read its events again")

    def _refuse_cycle(self, begin: Shape, after: Shape) -> None:
        """Look where ``after`` leads; classes do not count, they may come and go."""
        seen, waiting = {after}, [after]
        while waiting:
            at = waiting.pop()
            if at == begin:
                raise EventTypeError(
                    begin.name,
                    f"would be read as {after}, and that as {begin} again; a name that was given"
                    " up does not come back",
                )
            rename = self.renames.get(at.name)
            step = self.steps.get(at)
            following: list[Shape] = list(step.targets.values()) if step else []
            if rename is not None and at.version >= rename.from_version:
                following = [Shape(rename.to, at.version)]
            waiting += [one for one in following if one not in seen]
            seen.update(following)

    def _names_before(self, name: str) -> set[str]:
        """Return the names whose events can become events of this name, itself among them."""
        found, waiting = {name}, [name]
        while waiting:
            fresh = self._before.get(waiting.pop(), set()) - found
            found |= fresh
            waiting += fresh
        return found

    def _leading(self, names: Iterable[str]) -> Iterator[Shape]:
        """Yield the shapes of these names from which a step or a rename leads on."""
        for name in names:
            versions = set(self._lifted.get(name, ()))
            if name in self.renames:
                versions.update(self._versions_from(self.renames[name].from_version))
            for version in versions:
                yield Shape(name, version)

    def _versions_from(self, version: int) -> list[int]:
        """Return enough versions to meet every way: where nothing is declared, they are alike."""
        return [known for known in self._versions if known >= version]
