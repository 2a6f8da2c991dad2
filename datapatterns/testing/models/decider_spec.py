"""Given these events, when this is asked, then that happens: deciders and aggregates in tests."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Final, Generic, NoReturn, ParamSpec, TypeVar, overload

from datapatterns.event_sourcing import Aggregate, Decides
from datapatterns.testing.models.decider import Decided, deciding, replay
from datapatterns.testing.models.sameness import same
from datapatterns.testing.models.story import SpecError, differing, told

A = TypeVar("A", bound=Aggregate)
C = TypeVar("C")
S = TypeVar("S")
P = ParamSpec("P")

_NOT_GIVEN: Final = object()


class DeciderSpec(Generic[C, S]):
    """Says what an aggregate or a `Decider` does, in values; without a server.

    >>> class Door:
    ...     initial = "open"
    ...     def decide(self, command, state):
    ...         return ["closed"] if command == "close" and state == "open" else []
    ...     def evolve(self, state, event):
    ...         return event
    >>> closed = DeciderSpec(Door()).given("closed")
    >>> closed.when("close").then_nothing()

    Nothing is changed by a chain, so a part of it can be kept and gone on from several times.
    A chain that ends before ``then`` checks nothing.
    """

    @overload
    def __init__(self: "DeciderSpec[Callable[[A], object], A]", subject: type[A], /) -> None: ...
    @overload
    def __init__(self, subject: Decides[C, S, Any], /) -> None: ...
    def __init__(self, subject: Any, /) -> None:
        """Say who decides: an aggregate's class, or a decider.

        Raises:
            TypeError: It is neither.
        """
        self._subject = deciding(subject)
        self._given: tuple[object, ...] = ()

    def given(self, *events: object) -> "DeciderSpec[C, S]":
        """Return the spec with ``events`` behind those that it has."""
        spec: DeciderSpec[C, S] = DeciderSpec.__new__(DeciderSpec)
        spec._subject, spec._given = self._subject, (*self._given, *events)
        return spec

    @overload
    def when(
        self: "DeciderSpec[Callable[[A], object], A]",
        command: Callable[Concatenate[A, P], object],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> "Decision[A]": ...
    @overload
    def when(self, command: C, /) -> "Decision[S]": ...
    def when(self, command: Any, /, *args: Any, **kwargs: Any) -> "Decision[Any]":
        """Let it decide, once.

        Args:
            command: What a decider understands; for an aggregate one of its methods, or any
                function of it.
            args: For the method.
            kwargs: For the method.

        Raises:
            SpecError: It changed its state by other means than events.
            TypeError: It returned what is no list of events, or has to be awaited.
        """
        command = self._subject.command(command, *args, **kwargs)
        state = replay(self._subject, self._given)
        decided = self._subject.decide(command, state)
        if decided.error is None:
            self._check_replay(command, decided)
        return Decision(self._given, command, decided)

    def _check_replay(self, command: object, decided: Decided[Any]) -> None:
        # What no event says is lost with the object, so no test may rely on it.
        replayed = replay(self._subject, [*self._given, *decided.events])
        left, again = self._subject.values(decided.state), self._subject.values(replayed)
        if not same(left, again):
            raise SpecError(
                "the command changed more than its events say",
                *told("given", self._given),
                *told("when", [command]),
                *told("events", decided.events),
                *told("left", [left]),
                *told("replay", [again]),
            )


@dataclass(frozen=True, slots=True)
class Decision(Generic[S]):
    """What came of a command, to be compared with what should have."""

    given: tuple[object, ...]
    command: object
    decided: Decided[S] = field(repr=False)

    def then(self, *events: object) -> "Decision[S]":
        """Expect exactly these events, in this order.

        Raises:
            SpecError: Others happened, or the command was refused.
        """
        if self.decided.error is not None or not same(self.decided.events, events):
            self._fail(told("expected", events), differing(events, self.decided.events))
        return self

    def then_nothing(self) -> "Decision[S]":
        """Expect that nothing happens, and that nothing is refused.

        Raises:
            SpecError: Something happened, or the command was refused.
        """
        return self.then()

    def then_raises(self, error: type[Exception], *, match: str | None = None) -> None:
        """Expect a refusal.

        Args:
            error: Its class, or one above it.
            match: A regular expression that its message contains.

        Raises:
            SpecError: The command was not refused, or otherwise.
        """
        raised = self.decided.error
        if not isinstance(raised, error) or (
            match is not None and not re.search(match, str(raised))
        ):
            like = f" that says {match!r}" if match is not None else ""
            self._fail([f"expected  {error.__name__}{like}"], [])

    def then_state(self, expected: object = _NOT_GIVEN, /, **attributes: object) -> "Decision[S]":
        """Expect a state after the events.

        Args:
            expected: All of it; an aggregate is compared by ``attributes`` alone.
            attributes: Some of its attributes.

        Raises:
            SpecError: It is another, or the command was refused.
            TypeError: Nothing is expected.
        """
        if (expected is _NOT_GIVEN) == (not attributes):
            raise TypeError("expect either a state or some of its attributes")
        state = self.decided.state
        if attributes:
            got = {name: getattr(state, name, _MISSING) for name in attributes}
            if not same(got, attributes) or self.decided.error is not None:
                self._fail_state(_listed(attributes), _listed(got), _differing(attributes, got))
        elif not same(state, expected) or self.decided.error is not None:
            self._fail_state(repr(expected), repr(state), differing([expected], [state]))
        return self

    def _fail_state(self, expected: str, found: str, differences: list[str]) -> NoReturn:
        self._fail([f"expected  state {expected}"], [f"state     {found}", *differences])

    def _fail(self, expected: list[str], differences: list[str]) -> NoReturn:
        error = self.decided.error
        refusal = [] if error is None else [f"got       {type(error).__name__}: {error}"]
        got = refusal or told("got", self.decided.events)
        raise SpecError(
            "the decision is another",
            *told("given", self.given),
            *told("when", [self.command]),
            *expected,
            *got,
            *differences,
        ) from error


class _Missing:
    def __repr__(self) -> str:
        return "no such attribute"


_MISSING: Final = _Missing()


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _differing(expected: Mapping[str, object], got: Mapping[str, object]) -> list[str]:
    return [
        f"differs   {name}: expected {value!r}, got {got[name]!r}"
        for name, value in expected.items()
        if not same(got[name], value)
    ]
