"""Deciders and aggregates that could pass although nothing of them has run, or by the wrong way."""

# ruff: noqa: ANN401, ARG001, ARG005 -- deciders may be anything, and leave out what they may

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from datapatterns.event_sourcing import Aggregate, EventTypes, applies
from datapatterns.testing import Call, DeciderSpec, SpecError, aggregate_machine

types = EventTypes()


@types.event("misfit.taken")
@dataclass(frozen=True)
class Taken:
    seats: int


class Show(Aggregate, category="misfit"):
    free = 3

    def take(self, seats: int = 1) -> None:
        if seats > self.free:
            raise ValueError("sold out")
        self.emit(Taken(seats))

    async def take_later(self) -> None:
        self.take()

    def take_slowly(self) -> Any:
        yield
        self.take()

    def lose(self) -> None:
        self.free -= 1

    @applies
    def _(self, e: Taken) -> None:
        self.free -= e.seats


class Opened(NamedTuple):
    place: int


class Closed(NamedTuple):
    place: int


@dataclass
class Model:
    decide: Callable[[Any, Any], Any]
    evolve: Callable[[Any, Any], Any] = lambda state, event: state
    initial: Any = 0


async def later(command: Any, state: Any) -> list[object]:
    return [command, state]


async def later_again(command: Any, state: Any) -> Any:
    yield command, state


class Plain:
    """A state without ``__eq__``."""

    def __init__(self, places: int) -> None:
        self.places = places


@pytest.mark.parametrize(
    "answer", [None, "closed", b"closed", {}, {"a": 1}, {Opened(1)}, Opened(1), Taken(1), 7]
)
def test_what_is_no_list_of_events_is_no_refusal(answer: object) -> None:
    asked = DeciderSpec(Model(lambda command, state: answer))

    with pytest.raises(TypeError, match="no list of events"):
        asked.when("close").then_raises(TypeError)


@pytest.mark.parametrize("decide", [later, later_again])
def test_an_async_decide_is_no_refusal(decide: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"make it a plain function|no list of events"):
        DeciderSpec(Model(decide)).when("close").then_raises(TypeError)


def test_an_async_evolve_is_refused() -> None:
    with pytest.raises(TypeError, match="evolve gave a coroutine"):
        DeciderSpec(Model(lambda command, state: [], later)).given(1).when(1)


@pytest.mark.parametrize("method", [Show.take_later, Show.take_slowly])
def test_a_method_that_has_not_run_has_not_decided_for_nothing(method: Any) -> None:
    with pytest.raises(TypeError, match="nothing of it has run"):
        DeciderSpec(Show).when(method).then_nothing()
    with pytest.raises(TypeError, match="nothing of it has run"):
        run(aggregate_machine(Show, st.just(Call(method)), types=types))


def test_a_decide_that_may_be_a_generator_may_also_refuse() -> None:
    def decide(command: int, state: int) -> Any:
        yield command
        if command > 1:
            raise ValueError("too many")

    model = DeciderSpec(Model(decide, lambda state, event: state + event))

    model.given(1).when(1).then(1).then_state(2)
    model.when(2).then_raises(ValueError, match="too many")


def test_an_initial_state_that_is_a_function_and_a_class_for_an_object_are_refused() -> None:
    class Door:
        initial = 0

        def decide(self, command: int, state: int) -> list[int]:
            return [command + state]

        def evolve(self, state: int, event: int) -> int:
            return state + event

    with pytest.raises(TypeError, match="give an object, not its class"):
        DeciderSpec(Door)  # type: ignore[type-var]  # what a slip looks like
    with pytest.raises(TypeError, match="initial is a function"):
        DeciderSpec(Model(lambda command, state: [], initial=lambda: 0))


def test_a_decide_that_changes_its_state_is_found() -> None:
    def decide(command: str, state: dict[str, int]) -> list[object]:
        state["places"] += 1
        return []

    model = Model(decide, initial={"places": 0})

    with pytest.raises(SpecError, match="decide changed the state"):
        DeciderSpec(model).when("open").then_nothing()
    assert model.initial == {"places": 0}


def test_a_method_that_changes_more_than_its_events_say_is_found() -> None:
    with pytest.raises(SpecError, match="changed more than its events say"):
        DeciderSpec(Show).when(Show.lose).then_nothing()


def test_a_state_without_equality_is_not_taken_for_changed() -> None:
    model = Model(lambda command, state: [command], lambda s, e: Plain(s.places + e), Plain(0))

    DeciderSpec(model).given(1).when(1).then(1).then_state(places=2).then_state(Plain(2))
    with pytest.raises(SpecError):
        DeciderSpec(model).given(1).when(1).then_state(Plain(3))


def test_tuples_of_other_names_are_other_events() -> None:
    model = DeciderSpec(Model(lambda command, state: [Closed(1)]))

    with pytest.raises(SpecError, match=r"expected Opened\(place=1\), got Closed\(place=1\)"):
        model.when("close").then(Opened(1))


def test_nan_is_itself() -> None:
    model = DeciderSpec(Model(lambda command, state: [Opened(float("nan"))]))  # type: ignore[arg-type]  # any number

    model.when("measure").then(Opened(float("nan")))  # type: ignore[arg-type]  # any number
    with pytest.raises(SpecError):
        model.when("measure").then(Opened(1))


@pytest.mark.parametrize("answer", [0, [], "", False])
def test_whatever_is_false_breaks_the_rule(answer: object) -> None:
    with pytest.raises(SpecError, match="the state is invalid"):
        run(aggregate_machine(Show, st.just(Call(Show.take)), valid=lambda _: answer, types=types))


def test_a_rule_that_has_to_be_awaited_is_refused() -> None:
    async def valid(show: Show) -> bool:
        return show.free > 3

    with pytest.raises(TypeError, match="valid has to be awaited"):
        run(aggregate_machine(Show, st.just(Call(Show.take)), valid=valid, types=types))


def test_a_call_does_not_take_arguments_twice() -> None:
    with pytest.raises(TypeError, match="has its arguments already"):
        DeciderSpec(Show).when(Call(Show.take), seats=2)  # type: ignore[call-overload]  # the slip


def run(machine: Any) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=3, stateful_step_count=3, database=None)
    )
