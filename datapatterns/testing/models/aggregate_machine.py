"""Random commands to an aggregate or a decider, and what must hold after each of them."""

import inspect
from collections.abc import Callable
from typing import Any, Final

from hypothesis.stateful import invariant, rule
from hypothesis.strategies import SearchStrategy

from datapatterns.event_sourcing import EventTypes
from datapatterns.event_sourcing.evolution.event_types import EVENT_TYPES
from datapatterns.testing.models.decider import Decided, Deciding, deciding, replay
from datapatterns.testing.models.machine import Machine
from datapatterns.testing.models.sameness import same
from datapatterns.testing.models.stored_form import (
    SnapshotForm,
    StoredEvent,
    snapshot_form,
    stored_form,
)
from datapatterns.testing.models.story import SpecError, told

REFUSALS: Final = (ValueError,)
"""What commands are refused with unless told otherwise."""


def aggregate_machine(
    subject: Any,  # noqa: ANN401 -- an aggregate's class or a decider
    commands: SearchStrategy[Any],
    *,
    valid: Callable[[Any], object] = lambda _: True,
    refused: tuple[type[Exception], ...] = REFUSALS,
    snapshot_as: object | None = None,
    types: EventTypes = EVENT_TYPES,
) -> "type[AggregateMachine]":
    """Return a state machine that sends ``commands`` to one stream of ``subject``.

    After each command these hold, or `SpecError` tells the history that breaks them:

    - ``valid`` of the state;
    - each event comes back from its stored form as it was;
    - the state is that of a replay of the stored events;
    - a snapshot at any version and the events after it give the same state.

    Run it as ``TestBasket = aggregate_machine(...).TestCase``; subclass it to add rules.

    Args:
        subject: An aggregate's class, or a `Decider`.
        commands: For an aggregate `Call` or other functions of it.
        valid: The rule of the domain; it returns something false, such as an empty list, or
            raises if it is broken. None is no answer: a function that asserts returns that.
        refused: What commands may be refused with. Any other error is a failure.
        snapshot_as: The type of a decider's state, if there are snapshots of it. Those of an
            aggregate are checked if it has a snapshot policy.
        types: Where the classes of the events are declared.

    Raises:
        AggregateError: The aggregate's state cannot be stored.
        TypeError: ``subject`` is neither an aggregate's class nor a decider.
    """
    told_how = deciding(subject)
    form = snapshot_form(subject, snapshot_as)

    class Told(AggregateMachine):
        subject = told_how
        snapshots = form
        event_types = types

        @rule(command=commands)
        def decide(self, command: Any) -> None:  # noqa: ANN401 -- what the subject understands
            self.send(told_how.command(command), refused=refused)

        @invariant()
        def is_valid(self) -> None:
            self.check(valid)

    name = subject.__name__ if isinstance(subject, type) else type(subject).__name__
    Told.__name__ = Told.__qualname__ = f"{name}Machine"
    return Told


class AggregateMachine(Machine):
    """What `aggregate_machine` returns a subclass of.

    Attributes:
        stored: The events so far, as the store would keep them.
        state: The state after them.
    """

    subject: Deciding
    snapshots: SnapshotForm | None
    event_types: EventTypes

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[StoredEvent] = []
        self.state = self.subject.begin()
        self._continued: list[tuple[int, Any]] = []
        self._take_snapshot()
        self._check_snapshots([])

    def send(self, command: Any, *, refused: tuple[type[Exception], ...]) -> None:  # noqa: ANN401
        """Carry out one command on a state loaded for it, and check what came of it."""
        decided = self.subject.decide(command, self._replayed())
        if decided.error is not None:
            if not isinstance(decided.error, refused):
                raise decided.error
            return
        new = [stored_form(event, self.event_types) for event in decided.events]
        self.stored += new
        self.state = self._replayed()
        self._check_replay(command, decided)
        self._check_snapshots(new)
        self._take_snapshot()
        self._check_snapshots([])

    def check(self, valid: Callable[[Any], object]) -> None:
        """Check the rule of the domain."""
        try:
            answer = valid(self._replayed())
        except AssertionError as error:
            raise SpecError(f"the state is invalid: {error}", *self._story()) from error
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise TypeError("valid has to be awaited, so it has checked nothing; make it plain")
        if answer is not None and not answer:
            raise SpecError("the state is invalid", *self._story())

    def _check_replay(self, command: object, decided: Decided[Any]) -> None:
        live, replayed = self.subject.values(decided.state), self.subject.values(self.state)
        if not same(live, replayed):
            raise SpecError(
                "a replay of what was stored gives another state than the command left",
                *self._story(),
                *told("when", [command]),
                *told("left", [live]),
                *told("replay", [replayed]),
            )

    def _check_snapshots(self, new: list[StoredEvent]) -> None:
        expected = self.subject.values(self.state)
        for place, (version, state) in enumerate(self._continued):
            try:
                after = self._after(state, new)
            except Exception as error:
                raise SpecError(
                    f"events do not apply to a snapshot at version {version}:"
                    f" {type(error).__name__}: {error}",
                    *self._story(),
                ) from error
            self._continued[place] = (version, after)
            if not same(got := self.subject.values(after), expected):
                raise SpecError(
                    f"a snapshot at version {version} and what follows is not the replay of all",
                    *self._story(),
                    *told("replay", [expected]),
                    *told("snapshot", [got]),
                )

    def _after(self, state: Any, new: list[StoredEvent]) -> Any:  # noqa: ANN401 -- the state
        for stored in new:
            for event in stored.read(self.event_types):
                state = self.subject.evolve(state, event)
        return state

    def _take_snapshot(self) -> None:
        if self.snapshots is not None:
            again = self.snapshots.again(self._replayed())
            self._continued.append((len(self.stored), again))

    def _replayed(self) -> Any:  # noqa: ANN401 -- whatever the state is
        return replay(self.subject, self._history())

    def _history(self) -> list[object]:
        return [event for stored in self.stored for event in stored.read(self.event_types)]

    def _story(self) -> list[str]:
        return told("history", self._history())
