"""Which class stands for which type of event, and how older shapes become today's.

An upcaster is a pure function from the data of one version to that of the next. Stored events are
never rewritten: they are lifted, step by step, each time they are read.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, overload

import msgspec

from datapatterns.errors import EventTypeError, PersonalFieldError
from datapatterns.event_sourcing.content.shapes import classes_within, decoder_of, is_frozen
from datapatterns.event_sourcing.events import check_event_type
from datapatterns.event_sourcing.evolution.evolving import (
    Ancestor,
    Declarations,
    EventType,
    Fate,
    Rename,
    Shape,
    Splitter,
    Step,
    Verdict,
)
from datapatterns.event_sourcing.evolution.lifting import Reader, nothing_of, reader_of
from datapatterns.event_sourcing.persons.personal import (
    SUBJECT_FORGOTTEN,
    PersonalPlan,
    SubjectForgotten,
)
from datapatterns.event_sourcing.persons.personal_planning import personal_plan

E = TypeVar("E", bound=type)
U = TypeVar("U", bound=dict[str, Any] | list[dict[str, Any]] | None)


class EventTypes:
    """The types of events that a program knows.

    Most programs use the one that `event`, `upcast`, `renamed` and `dropped` fill; tests and
    programs that hold two releases of a model make their own.

    Args:
        skip_unknown: Read events of names that are not declared as nothing, instead of raising
            `EventTypeError`. For readers that follow a log of which they know a part; never for
            what decides, as a forgotten import then looks like a stream without events.
    """

    def __init__(self, *, skip_unknown: bool = False) -> None:
        self._declared = Declarations()
        self._by_class: dict[type, EventType] = {}
        self._skip_unknown = skip_unknown
        # Replaced, never emptied, when something is declared: who compiles from what was declared
        # before, in another thread, then fills a dict that nobody reads any more.
        self._readers: dict[tuple[str, int], Reader] = {}
        self._names: dict[type, frozenset[str]] = {}
        self._personal: dict[tuple[str, int], tuple[EventType | None, PersonalPlan | None]] = {}
        self.revision = 0
        """How often something was declared; what was derived before may be out of date."""
        self.event(SUBJECT_FORGOTTEN)(SubjectForgotten)

    def event(
        self,
        name: str,
        *,
        version: int = 1,
        renamed_from: str | tuple[str, ...] = (),
        tags: Callable[[Any], tuple[str, ...]] | None = None,
    ) -> Callable[[E], E]:
        """Declare that a frozen class is the current shape of ``name``.

        A dataclass, a msgspec Struct, an attrs class or a pydantic model.

        Args:
            name: What happened, in the words of the domain: ``item.scanned``.
            version: Of the shape. Raise it when data that was stored no longer fits the class,
                and register an upcaster for each version before. A new field with a default
                needs neither.
            renamed_from: Names under which it was stored before, as by `renamed`.
            tags: Returns the tags of an event, such as ``course:c1``, whenever one is appended;
                those that are stored already keep theirs.

        Raises:
            EventTypeError: A name belongs to another class, or the class cannot be an event.
            PersonalFieldError: A personal field could not be protected.
            ValueError: A name or the version cannot be stored.
        """
        check_event_type(name, version)

        def declare(cls: E) -> E:
            _check_class(name, cls)
            known = self._declared.types.get(name)
            # A module that is loaded again declares the same class again, as a new object.
            if known is not None and _place(known.cls) != _place(cls):
                raise EventTypeError(
                    name, f"is declared by {_place(known.cls)} and by {_place(cls)}; rename one"
                )
            before = self._by_class.get(cls)
            if before is not None and before.name != name:
                raise EventTypeError(
                    name,
                    f"is the class of {before.name!r}, too; keep one name, and give the other as"
                    " renamed_from",
                )
            declared = EventType(name, version, cls, decoder_of(cls), tags, _plan(name, cls, tags))
            self._declared.add_type(declared)
            self._by_class[cls] = declared
            self._changed()
            for old in (renamed_from,) if isinstance(renamed_from, str) else renamed_from:
                self.renamed(old, name)
            return cls

        return declare

    @overload
    def upcast(
        self, name: str, from_version: int
    ) -> Callable[[Callable[[dict[str, Any]], U]], Callable[[dict[str, Any]], U]]: ...

    @overload
    def upcast(
        self, name: str, from_version: int, *, into: Mapping[str, int]
    ) -> Callable[[Splitter], Splitter]: ...

    def upcast(
        self, name: str, from_version: int, *, into: Mapping[str, int] | None = None
    ) -> Callable[[Any], Any]:
        """Register how data of ``name`` gets from ``from_version`` to the next version.

        The function must not do anything else: it runs each time an old event is read. What it is
        given is its own.

        Args:
            name: The type, as it is stored.
            from_version: Of the data that the function takes.
            into: If it becomes events of other types: their names, with the version whose shape
                the function gives them. It then returns a list of names with data, which climb
                on from there.

        Raises:
            EventTypeError: Another function is registered for this step, no event comes by it, or
                it leads back to where it begins.
            ValueError: A name or a version cannot be stored, or ``into`` is empty.
        """
        check_event_type(name, from_version)
        if into is not None and not into:
            raise ValueError(f"events of {name!r} become nothing; say so by dropped()")
        for target, version in (into or {}).items():
            check_event_type(target, version)
        shape = Shape(name, from_version)
        targets = into if into is not None else {name: from_version + 1}

        def register(function: Any) -> Any:  # noqa: ANN401 -- either kind of upcaster
            known = self._declared.steps.get(shape)
            if known is not None and _place(known.function) != _place(function):
                raise EventTypeError(
                    name, f"has two upcasters from version {from_version}; keep one"
                )
            step = Step(
                function,
                {target: Shape(target, version) for target, version in targets.items()},
                is_plain=into is None,
            )
            self._declared.add_step(shape, step)
            self._changed()
            return function

        return register

    def renamed(self, old: str, to: str, *, from_version: int = 1) -> None:
        """Declare that what is stored under an old name is read as the new one.

        The version stays: version 2 of the old name is version 2 of the new one, and climbs by
        the upcasters of the new name.

        Args:
            old: The name that is stored. It is never used again.
            to: The name that takes its place; it may have been given up in turn.
            from_version: Versions before climb by upcasters of the old name until they reach it.

        Raises:
            EventTypeError: The old name still means something, or leads back to itself.
            ValueError: A name or the version cannot be stored.
        """
        check_event_type(old, from_version)
        check_event_type(to, from_version)
        self._declared.add_rename(old, Rename(to, from_version))
        self._changed()

    def dropped(self, name: str, *, reason: str) -> None:
        """Declare that stored events of this name mean nothing any more, in any version.

        They are read as no event. Remove the handlers with the class.

        Args:
            name: The name that is stored. It is never used again.
            reason: Why they may be passed over; `check_events` shows it.

        Raises:
            EventTypeError: The name has a class, another name or an upcaster.
            ValueError: The name cannot be stored, or there is no reason.
        """
        check_event_type(name, 1)
        if not reason.strip():
            raise ValueError(f"say why events of {name!r} may be passed over")
        self._declared.add_drop(name, reason)
        self._changed()

    def skipping_unknown(self) -> "EventTypes":
        """Return a copy of what is declared by now that reads events of unknown names as nothing.

        See ``skip_unknown``, and when not to use it, at the class.
        """
        copied = EventTypes(skip_unknown=True)
        copied._declared = self._declared.copy()
        copied._by_class = dict(self._by_class)
        copied.revision = self.revision
        return copied

    def of(self, cls: type) -> EventType:
        """Return the declaration of ``cls``.

        Raises:
            EventTypeError: There is none.
        """
        declared = self._by_class.get(cls)
        if declared is None:
            raise EventTypeError(_place(cls), 'is not an event; declare it with @event("its.name")')
        return declared

    def personal_type(self, name: str, schema_version: int) -> EventType | None:
        """Return what data of this shape is today, or is called, if that has personal fields."""
        return self._personal_of((name, schema_version))[0]

    def personal_plan(self, name: str, schema_version: int) -> PersonalPlan | None:
        """Return where personal fields lie in data of exactly this shape; None if it has none.

        None, too, for shapes that lead to a class with such fields, but by upcasters: nobody knows
        where they lie. A name that was given up is only a name.
        """
        return self._personal_of((name, schema_version))[1]

    def _personal_of(self, key: tuple[str, int]) -> tuple[EventType | None, PersonalPlan | None]:
        found = self._personal
        if key not in found:
            shape = Shape(*key)
            named = self._declared.types.get(shape.name)
            candidates = [*self.fate(*shape).classes, *([named] if named else [])]
            declared = next((one for one in candidates if one.personal), None)
            plan = None
            if declared and self._declared.named_today(shape) == declared.shape:
                plan = declared.personal
            found[key] = declared, plan
        return found[key]

    def fate(self, name: str, schema_version: int) -> Fate:
        """Return what becomes of a stored type of event, without reading one."""
        return self._declared.fate(Shape(name, schema_version))

    def history(self, cls: type) -> list[Ancestor]:
        """Return every older shape that can lead to ``cls``, and how, in the order of names.

        A state that is folded from events of ``cls`` depends on it: on the upcasters, and on what
        each is followed by.

        Raises:
            EventTypeError: The class is not declared.
        """
        return self._declared.ancestors(self.of(cls))

    def latest_version(self, name: str) -> int:
        """Return the last version in which data of this name has a meaning of its own.

        It is 0 for what is dropped, or was renamed from its first version on.

        Raises:
            EventTypeError: The name is not declared.
        """
        return self._declared.latest_version(name)

    def named_today(self, name: str, schema_version: int) -> str:
        """Return the name under which stored data of this one is read."""
        return self._declared.named_today(Shape(name, schema_version)).name

    def stored_names(self, cls: type) -> frozenset[str]:
        """Return the names under which events can be stored that are read as ``cls``.

        Raises:
            EventTypeError: The class is not declared.
        """
        names = self._names
        if cls not in names:
            before = {ancestor.shape.name for ancestor in self.history(cls)}
            names[cls] = frozenset({self.of(cls).name, *before})
        return names[cls]

    def reader(self, name: str, schema_version: int) -> Reader:
        """Return what reads stored events of this type; it is compiled once.

        Raises:
            EventShapeError: No upcaster leads from the version, or newer code has stored it.
            EventTypeError: The type is not declared.
        """
        readers = self._readers
        found = readers.get((name, schema_version))
        if found is None:
            stored = Shape(name, schema_version)
            is_skipped = self._skip_unknown and self._is_unknown(stored)
            found = nothing_of(stored) if is_skipped else reader_of(self._declared, stored)
            readers[name, schema_version] = found
        return found

    def decode(self, name: str, schema_version: int, data: Mapping[str, Any]) -> list[object]:
        """Return what stored data says today: no, one or several typed events.

        Raises:
            EventShapeError: The data does not fit, no upcaster leads from its version, or one
                raised.
            EventTypeError: The type is not declared here.
        """
        return self.reader(name, schema_version).from_data(data)

    def decode_json(self, name: str, schema_version: int, data: str | bytes) -> list[object]:
        """Return what stored JSON says today, without a detour if it has today's shape.

        Raises:
            EventShapeError: The data does not fit, no upcaster leads from its version, or one
                raised.
            EventTypeError: The type is not declared here.
        """
        return self.reader(name, schema_version).from_json(data)

    def _is_unknown(self, stored: Shape) -> bool:
        fate = self._declared.follow(stored)
        return isinstance(fate, Fate) and fate.verdict is Verdict.UNKNOWN

    def _changed(self) -> None:
        self._readers = {}
        self._names = {}
        self._personal = {}
        self.revision += 1


def _check_class(name: str, cls: object) -> None:
    frozen = is_frozen(cls)
    if frozen is None:
        raise EventTypeError(
            name,
            f"{cls!r} is no dataclass, msgspec Struct, attrs class or pydantic model; put @event"
            " above @dataclass",
        )
    if not frozen:
        raise EventTypeError(name, "what happened does not change; declare the class frozen=True")
    if msgspec.Raw in classes_within(cls):
        raise EventTypeError(
            name, "holds msgspec.Raw, which nobody has read before it is stored; declare a dict"
        )


def _plan(
    name: str, cls: type, tags: Callable[[Any], tuple[str, ...]] | None
) -> PersonalPlan | None:
    plan = personal_plan(name, cls)
    used: tuple[str, ...] = getattr(getattr(tags, "__code__", None), "co_names", ())
    for field in sorted(plan.names.intersection(used) if plan else ()):
        raise PersonalFieldError(
            name, field=field, advice="is used in its tags, which cannot be forgotten; tag an id"
        )
    return plan


def _place(code: Any) -> str:  # noqa: ANN401 -- a class or a function
    return f"{code.__module__}.{code.__qualname__}"


EVENT_TYPES: Final = EventTypes()
"""What `event` and `upcast` fill, and what a store uses unless it is given another."""

event = EVENT_TYPES.event
upcast = EVENT_TYPES.upcast
renamed = EVENT_TYPES.renamed
dropped = EVENT_TYPES.dropped
