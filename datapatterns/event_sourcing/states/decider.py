"""Deciders: the same as aggregates, written as values and two functions."""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, field, is_dataclass
from inspect import (
    isasyncgenfunction,
    isawaitable,
    iscoroutine,
    iscoroutinefunction,
    isgenerator,
    isgeneratorfunction,
    signature,
)
from types import UnionType
from typing import (
    Any,
    Final,
    Generic,
    NoReturn,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing.content.shapes import field_names, is_frozen
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.states.policy import SnapshotPolicy
from datapatterns.event_sourcing.states.sourced import History, Sourced, is_unchanging

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)
S = TypeVar("S")
E = TypeVar("E")


class Decides(Protocol[C_contra, S, E]):
    """Decides what happens, from values alone.

    After Jérémie Chassaing's functional event sourcing decider. Any object with these three will
    do for tests of what it decides; `Decider` adds what the store needs. ``decide`` refuses by
    raising; ``evolve`` returns the next state.
    """

    @property
    def initial(self) -> S:
        """The state before the first event."""
        ...

    @property
    def decide(self) -> Callable[[C_contra, S], Iterable[E]]:
        """Return the events that a command leads to."""
        ...

    @property
    def evolve(self) -> Callable[[S, E], S]:
        """Return the state after an event."""
        ...


@dataclass(frozen=True, eq=False)
class Decider(Generic[C, S, E]):
    """Decides about one category of streams, as an `Aggregate` does, but from values alone.

    ``basket("7")`` is the basket before its first event; `EventStore.load` makes what it is now.

    Attributes:
        category: The first part of the names of its streams.
        initial: The state before the first event. Each stream begins with a copy.
        decide: Takes a command and the state, returns the events that happen; it refuses by
            raising.
        evolve: Takes the state and an event, returns the next state. It must not decide, raise
            or look at the clock: it runs again for every load.
        state: The type of the state; unless given, what ``evolve`` is annotated to return.
        events: The classes that ``evolve`` takes; unless given, those of its annotation.
        snapshot: When to write snapshots; without one there are none.
        snapshot_version: Raise it when a change matters that the code's fingerprint cannot see.

    Raises:
        AggregateError: A function could not be called as it has to be.
        ValueError: The category cannot be stored.
    """

    category: str
    initial: S
    decide: Callable[[C, S], Iterable[E]]
    evolve: Callable[[S, E], S]
    _: KW_ONLY
    state: Any = None
    events: tuple[type, ...] = ()
    snapshot: SnapshotPolicy | None = None
    snapshot_version: int = 0
    _is_shared: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        StreamId(self.category, "any")  # refuses what cannot name a category
        for name in ("decide", "evolve"):
            function = getattr(self, name)
            if iscoroutinefunction(function) or isasyncgenfunction(function):
                self._refuse(f"has an async {name}; make it a plain function, it only decides")
            try:
                signature(function).bind(object(), object())
            except TypeError as error:
                self._refuse(f"has a {name} that does not take two arguments: {error}")
            except ValueError:  # written in C, without a signature
                continue
        if isgeneratorfunction(self.evolve):
            self._refuse("has an evolve that yields; return the next state")
        events, state = _annotated(self.evolve)
        self._set("events", self.events or events)
        self._set("state", type(self.initial) if state is None else state, unless=self.state)
        self._set("_is_shared", is_unchanging(self.initial))

    @property
    def snapshot_policy(self) -> SnapshotPolicy | None:
        """When to write snapshots."""
        return self.snapshot

    def __call__(self, key: str, *, tenant: str = "") -> "Folded[C, S]":
        """Return the state of the stream with that key before its first event."""
        return Folded(self, key, tenant)

    def begin(self) -> S:
        """Return a state before the first event that nobody else holds."""
        return self.initial if self._is_shared else deepcopy(self.initial)

    def _set(self, name: str, value: object, *, unless: object = None) -> None:
        if unless is None:
            object.__setattr__(self, name, value)

    def _refuse(self, advice: str) -> NoReturn:
        raise AggregateError(self.category, advice)


class Folded(Sourced, Generic[C, S]):
    """What the events of one stream have become, by a `Decider`.

    Attributes:
        decider: What folds them.
        state: What ``evolve`` returned last.
    """

    state: S

    def __init__(self, decider: Decider[C, S, Any], key: str, tenant: str = "") -> None:
        self.decider = decider
        self._history = History(StreamId(decider.category, key, tenant))
        self.state = decider.begin()

    def decide(self, command: C) -> tuple[object, ...]:
        """Let the decider answer ``command``; return what happens, for `EventStore.save` to keep.

        Whatever the decider raises comes out, and then nothing has happened.

        Raises:
            TypeError: The decider returned something else than events.
        """
        events = tuple(decided(self.decider.decide(command, self.state)))
        for event in events:
            self.emit(event)
        return events

    def _apply(self, event: object) -> None:
        try:
            state = self.decider.evolve(self.state, event)
        except BaseException:
            self._history.is_torn = not is_unchanging(self.state)
            raise
        if state is None and self.decider.initial is not None:
            raise AggregateError(
                self._history.stream.category,
                f"has an evolve that returned nothing for {type(event).__name__}; return the state",
            )
        self.state = state


def decided(answer: Any) -> Iterable[Any]:  # noqa: ANN401 -- what a function returned
    """Return what ``decide`` answered, if that is events.

    Raises:
        TypeError: It is a single event, a set, or has not run yet.
    """
    if not isgenerator(answer):
        refuse_unfinished(answer, "decide")
    # Many a single event is iterable, and would come apart into its fields. A set has no order.
    is_one = isinstance(answer, str | bytes | Mapping | AbstractSet) or bool(
        field_names(type(answer)) or hasattr(type(answer), "_fields")
    )
    if is_one or is_dataclass(answer) or not isinstance(answer, Iterable):
        raise TypeError(
            f"decide returned {answer!r}, which is no list of events;"
            " return [event] for one, and [] if nothing happens"
        )
    return answer


def refuse_unfinished(answer: object, what: str) -> None:
    """Refuse what a call has returned if that call has not run yet.

    Raises:
        TypeError: It is a coroutine, another awaitable or a generator.
    """
    if iscoroutine(answer):
        answer.close()
    elif not (isgenerator(answer) or isawaitable(answer)):
        return
    raise TypeError(
        f"{what} gave a {type(answer).__name__}, so nothing of it has run; make it a plain function"
    )


_UNION: Final = (Union, UnionType)


def _annotated(evolve: Callable[..., Any]) -> tuple[tuple[type, ...], Any]:
    """Return the classes of events that ``evolve`` says it takes, and the state it returns."""
    try:
        hints = get_type_hints(evolve)
    except (NameError, TypeError):  # only the type checker can resolve them, or there are none
        return (), None
    names = [name for name in hints if name != "return"]
    hint = hints[names[1]] if len(names) == 2 else None  # noqa: PLR2004 -- state, event
    events = get_args(hint) if get_origin(hint) in _UNION else (hint,)
    state = hints.get("return")
    return (
        events if all(is_frozen(event) is not None for event in events) else (),
        None if state in (None, Any, object) or isinstance(state, TypeVar) else state,
    )
