"""What decides: an aggregate, or its functional twin."""

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from datapatterns.event_sourcing import Aggregate
from datapatterns.event_sourcing.content.shapes import is_frozen
from datapatterns.event_sourcing.states.decider import Decider, decided, refuse_unfinished
from datapatterns.event_sourcing.states.state import state_defaults
from datapatterns.testing.models.sameness import same
from datapatterns.testing.models.story import SpecError, told

S = TypeVar("S")


class Call:
    """A command to an aggregate: one of its methods, or any function of it, with arguments.

    >>> Call(str.replace, "a", "b")
    replace('a', 'b')
    """

    def __init__(self, function: Callable[..., object], /, *args: object, **kwargs: object) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs

    def __call__(self, aggregate: object) -> object:
        """Let ``aggregate`` decide."""
        return self._function(aggregate, *self._args, **self._kwargs)

    def __repr__(self) -> str:
        arguments = [repr(value) for value in self._args]
        arguments += [f"{name}={value!r}" for name, value in self._kwargs.items()]
        return f"{_name_of(self._function)}({', '.join(arguments)})"


@dataclass(frozen=True, slots=True)
class Decided(Generic[S]):
    """What came of one command.

    Attributes:
        events: What happened; of a refused command, what it emitted before.
        state: The state after them.
        error: Why the command was refused; None if it was not.
    """

    events: tuple[object, ...]
    state: S
    error: Exception | None = None


class Deciding(Protocol):
    """An aggregate's class or a decider, told what to do in the same words."""

    def begin(self) -> Any:  # noqa: ANN401 -- whatever the state is
        """Return the state before the first event."""
        ...

    def evolve(self, state: Any, event: object, /) -> Any:  # noqa: ANN401
        """Return the state after ``event``; the one given may be changed and is of no use."""
        ...

    def command(self, command: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what `decide` takes, and what a failure shows."""
        ...

    def decide(self, command: Any, state: Any, /) -> Decided[Any]:  # noqa: ANN401
        """Carry out ``command``; the state given may be changed and is of no use."""
        ...

    def values(self, state: Any, /) -> object:  # noqa: ANN401
        """Return what makes two states equal."""
        ...


def deciding(subject: object) -> Deciding:
    """Return how to talk to ``subject``.

    Raises:
        TypeError: It is neither an aggregate's class nor a decider.
    """
    if isinstance(subject, type) and issubclass(subject, Aggregate):
        return _AggregateClass(subject)
    if all(hasattr(subject, name) for name in ("initial", "decide", "evolve")):
        _refuse_misfits(subject)
        # Only its own `Folded` holds what such a decider is given, so it may change it.
        may_change = isinstance(subject, Decider) and is_frozen(type(subject.initial)) is False
        return _Decider(subject, may_change)
    raise TypeError(
        f"{subject!r} is neither an Aggregate class nor an object with initial, decide and evolve"
    )


def replay(subject: Deciding, events: Sequence[object]) -> Any:  # noqa: ANN401 -- the state
    """Return the state after ``events``."""
    state = subject.begin()
    for event in events:
        state = subject.evolve(state, event)
    return state


@dataclass(frozen=True, slots=True)
class _AggregateClass:
    cls: type[Aggregate]

    def begin(self) -> Aggregate:
        return self.cls("spec")

    def evolve(self, state: Aggregate, event: object, /) -> Aggregate:
        # As when it is loaded: a copy, for the state may go on with a list of the event.
        state._apply(deepcopy(event))  # noqa: SLF001 -- what a load does
        state._history.version += 1  # noqa: SLF001
        return state

    def command(self, command: Callable[..., object], /, *args: object, **kwargs: object) -> Call:
        if not isinstance(command, Call):
            return Call(command, *args, **kwargs)
        if args or kwargs:
            raise TypeError(f"{command} has its arguments already")
        return command

    def decide(self, command: Call, state: Aggregate, /) -> Decided[Any]:
        error = None
        try:
            answer = command(state)
        except Exception as raised:  # noqa: BLE001 -- it may refuse with any error
            error = raised
        else:
            refuse_unfinished(answer, f"{command}")
        return Decided(state.unsaved, state, error)

    def values(self, state: Aggregate, /) -> dict[str, object]:
        # What is still as in the class is not in the object.
        names = state_defaults(self.cls, above=Aggregate) | vars(state)
        return {name: getattr(state, name) for name in sorted(names) if name != "_history"}


@dataclass(frozen=True, slots=True)
class _Decider:
    decider: Any
    may_change: bool

    def begin(self) -> object:
        # A copy: whoever changes it, changes it for this history alone.
        return deepcopy(self.decider.initial)

    def evolve(self, state: object, event: object, /) -> object:
        before = deepcopy(state)
        after = self.decider.evolve(deepcopy(state) if self.may_change else state, event)
        refuse_unfinished(after, "evolve")
        if not same(state, before):
            raise ImpureEvolveError(before=before, after=state, event=event)
        return after

    def command(self, command: object, /) -> object:
        return command

    def decide(self, command: object, state: object, /) -> Decided[Any]:
        before = deepcopy(state)
        events, error = self._asked(command, state)
        if not same(state, before):
            raise SpecError(
                "decide changed the state that it was given",
                *told("state", [before]),
                *told("when", [command]),
                *told("became", [state]),
                "return events instead, and let evolve make a new state of them",
            )
        for event in events:
            state = self.evolve(state, event)
        return Decided(events, state, error)

    def _asked(self, command: object, state: object) -> tuple[tuple[object, ...], Exception | None]:
        try:
            answer = self.decider.decide(command, state)
        except Exception as raised:  # noqa: BLE001 -- it may refuse with any error
            return (), raised
        events = decided(answer)
        try:
            return tuple(events), None
        except Exception as raised:  # noqa: BLE001 -- a generator refuses only now
            return (), raised

    def values(self, state: object, /) -> object:
        return state


class ImpureEvolveError(AssertionError):
    """A decider changed the state that it was given, which others may still hold."""

    def __init__(self, *, before: object, after: object, event: object) -> None:
        super().__init__(
            f"evolve changed the state that it was given\n"
            f"state    {before!r}\n"
            f"event    {event!r}\n"
            f"became   {after!r}\n"
            "return a new state instead, for instance by dataclasses.replace"
        )


def _refuse_misfits(subject: Any) -> None:  # noqa: ANN401 -- what might be a decider
    # Called with wrong arguments it would refuse every command, and pass for strict.
    if inspect.isroutine(subject.initial):
        raise TypeError("initial is a function; it should be the state itself, or a property")
    for name in ("decide", "evolve"):
        try:
            inspect.signature(getattr(subject, name)).bind(object(), object())
        except TypeError as error:
            hint = "; give an object, not its class" if isinstance(subject, type) else ""
            raise TypeError(f"{name} does not take two arguments: {error}{hint}") from error
        except ValueError:  # written in C, without a signature
            continue


def _name_of(function: Callable[..., object]) -> str:
    name = getattr(function, "__name__", repr(function))
    code = getattr(function, "__code__", None)
    if name == "<lambda>" and code is not None:
        return f"lambda in line {code.co_firstlineno}"
    return name
