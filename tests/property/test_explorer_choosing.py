"""A bounded search runs each schedule within its bounds once, and no other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.testing.interleaving.bounding import BoundedSearch
from datapatterns.testing.interleaving.choosing import (
    Choice,
    Chooser,
    Fault,
    Gate,
    UnreadyError,
    befits,
    free_of_charge,
    in_order,
    picking,
    replaying,
)
from datapatterns.testing.interleaving.results import DivergedError
from datapatterns.testing.interleaving.story import Happening, Story
from datapatterns.testing.interleaving.tokens import from_token, to_token

Schedule = tuple[Choice, ...]


@dataclass
class Model:
    """Tasks as lists of operations: a step, a sleep, or the lock that they all share."""

    programs: dict[str, list[str]]
    done: dict[str, int] = field(init=False)
    owner: str | None = None
    passed_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.done = dict.fromkeys(self.programs, 0)

    def ready(self) -> list[Gate]:
        gates = []
        for task, program in self.programs.items():
            if self.done[task] == len(program):
                continue
            operation = program[self.done[task]]
            if operation == "lock" and self.owner not in {None, task}:
                continue
            if operation == "sleep":
                gates.append(Gate(task, "sleep", yields=True, due=10.0, in_server=False))
            else:
                gates.append(Gate(task, operation))
        return gates

    def take(self, choice: Choice) -> None:
        operation = self.programs[choice.task][self.done[choice.task]]
        self.done[choice.task] += 1
        if operation == "lock":
            self.owner = choice.task
        ends = self.done[choice.task] == len(self.programs[choice.task])
        if choice.fault is Fault.CRASH:
            self.done[choice.task] = len(self.programs[choice.task])
            ends = True
        if self.owner == choice.task and (operation == "unlock" or ends):
            self.owner = None


def run(programs: dict[str, list[str]], choose: Chooser) -> Schedule:
    model, taken = Model(programs), []
    while ready := model.ready():
        taken.append(choose(ready))
        model.take(taken[-1])
    return tuple(taken)


def all_schedules(
    programs: dict[str, list[str]], preemptions: int, faults: Sequence[Fault], max_faults: int
) -> Iterator[Schedule]:
    """Try everything, and keep what stays within the bounds."""

    def go_on(taken: Schedule, preempted: int, befallen: int) -> Iterator[Schedule]:
        model, last = Model(programs), taken[-1].task if taken else None
        for choice in taken:
            model.take(choice)
        ready = model.ready()
        if not ready:
            yield taken
        free = free_of_charge(ready, last)
        for gate in ready:
            costs = preempted + (gate not in free)
            for fault in (None, *(each for each in faults if befits(each, gate))):
                hurts = befallen + (fault is not None)
                if costs <= preemptions and hurts <= max_faults:
                    yield from go_on((*taken, Choice(gate.task, fault)), costs, hurts)

    return go_on((), 0, 0)


def costs_of(programs: dict[str, list[str]], schedule: Schedule) -> int:
    model, last, costs = Model(programs), None, 0
    for choice in schedule:
        costs += choice.task not in {gate.task for gate in free_of_charge(model.ready(), last)}
        costs += choice.fault is not None
        model.take(choice)
        last = choice.task
    return costs


PROGRAMS = st.dictionaries(
    st.sampled_from(["alice", "bob", "carol"]),
    st.lists(st.sampled_from(["step", "sleep", "lock", "unlock"]), min_size=1, max_size=3),
    min_size=1,
)
FAULTS = st.sampled_from([(), (Fault.CRASH,), (Fault.CRASH, Fault.REPLY_LOST)])


@given(PROGRAMS, st.integers(0, 2), FAULTS, st.integers(0, 1))
def test_a_bounded_search_runs_each_schedule_once_and_all_within_the_bounds(
    programs: dict[str, list[str]], preemptions: int, faults: Sequence[Fault], max_faults: int
) -> None:
    search = BoundedSearch(max_preemptions=preemptions, faults=faults, max_faults=max_faults)
    ran = []
    while search.found:
        ran.append(run(programs, search.next_chooser()))

    assert len(ran) == len(set(ran)) == search.explored
    assert set(ran) == set(all_schedules(programs, preemptions, faults, max_faults))
    costs = [costs_of(programs, schedule) for schedule in ran]
    assert costs == sorted(costs)


def test_a_loop_that_polls_ends_a_search() -> None:
    polling = {"poller": ["step", "sleep"] * 8, "worker": ["step"] * 3}
    search = BoundedSearch(max_preemptions=1)
    while search.found:
        run(polling, search.next_chooser())

    assert search.explored < 100


def test_fault_at_narrows_where_faults_happen() -> None:
    search = BoundedSearch(
        max_preemptions=0, faults=[Fault.CRASH], fault_at=lambda gate: gate.label == "lock"
    )
    ran = []
    while search.found:
        ran.append(run({"alice": ["step", "lock"]}, search.next_chooser()))

    assert [to_token(schedule) for schedule in ran] == ["alice*2", "alice.alice!crash"]


@pytest.mark.parametrize(("preemptions", "faults"), [(-1, 0), (0, -1)])
def test_negative_bounds_are_refused(preemptions: int, faults: int) -> None:
    with pytest.raises(ValueError, match="not negative"):
        BoundedSearch(max_preemptions=preemptions, max_faults=faults)


def test_a_prefix_that_does_not_fit_any_more_is_noticed() -> None:
    search = BoundedSearch(max_preemptions=1)
    run({"alice": ["step"] * 2, "bob": ["step"]}, search.next_chooser())

    with pytest.raises(UnreadyError, match="'bob' is not ready, only 'alice'"):
        run({"alice": ["step"] * 2}, search.next_chooser())


@given(PROGRAMS)
def test_without_picks_each_task_runs_to_its_end_and_nobody_is_preempted(
    programs: dict[str, list[str]],
) -> None:
    schedule = run(programs, picking({}))

    assert costs_of(programs, schedule) == 0


@given(PROGRAMS, st.dictionaries(st.integers(0, 9), st.integers(0, 5)), FAULTS)
def test_whatever_ran_can_be_replayed_from_its_token(
    programs: dict[str, list[str]], picks: dict[int, int], faults: Sequence[Fault]
) -> None:
    befalls = dict(enumerate(faults))
    schedule = run(programs, picking(picks, faults=befalls))

    assert run(programs, replaying(from_token(to_token(schedule)))) == schedule


CHOICES = st.builds(
    Choice,
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
    st.none() | st.sampled_from(Fault),
)


@given(st.lists(CHOICES))
def test_a_token_is_read_as_it_was_written(choices: list[Choice]) -> None:
    assert from_token(to_token(choices)) == choices


@given(st.text(max_size=30))
def test_no_text_breaks_the_reading_of_tokens(text: str) -> None:
    try:
        choices = from_token(text)
    except ValueError:
        return
    assert from_token(to_token(choices)) == choices


GATES = st.builds(
    Gate,
    st.sampled_from(["alice", "bob", "carol"]),
    st.just("x"),
    yields=st.booleans(),
    due=st.floats(0, 9),
)


@given(st.lists(GATES, min_size=1, unique_by=lambda gate: gate.task), st.none() | st.just("bob"))
def test_the_first_gate_in_order_preempts_nobody_and_sleepers_come_last(
    ready: list[Gate], last: str | None
) -> None:
    ordered, free = in_order(ready, last), free_of_charge(ready, last)

    assert sorted(ordered, key=str) == sorted(ready, key=str)
    assert ordered[0] in free
    if not all(gate.yields for gate in ready):
        assert not any(gate.yields for gate in free)
    if any(gate.task == last and not gate.yields for gate in ready):
        assert [gate.task for gate in free] == [last]


@given(
    st.lists(st.sampled_from(["alice", "bob", "carol"]), min_size=1, max_size=3, unique=True),
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.text(st.characters(codec="ascii", categories=["L"]), max_size=300),
            st.sampled_from(Happening),
        ),
        max_size=10,
    ),
)
def test_a_story_has_a_column_for_each_task_and_no_line_beyond_its_width(
    tasks: list[str], told: list[tuple[int, str, Happening]]
) -> None:
    story = Story(tasks)
    for number, text, happening in told:
        story.add(tasks[number % len(tasks)], text, happening)
    lines = str(story).splitlines()

    assert all(len(line) <= 5 + 134 + 2 * len(tasks) for line in lines)
    assert len(lines) == 2 + len(told)
    assert all(name in lines[0] for name in tasks)
    numbers = [line[:3].strip() for line in lines[2:] if line[:3].strip()]
    steps = sum(happening is Happening.STEP for _, _, happening in told)
    assert numbers == [str(number + 1) for number in range(steps)]


@pytest.mark.parametrize(("waits", "runs"), [(0, 1), (1, 5)])
def test_what_diverges_is_run_again_only_where_somebody_had_to_wait(waits: int, runs: int) -> None:
    search, tried, story = BoundedSearch(max_preemptions=0), list[Chooser](), Story(["a"])
    for _ in range(waits):
        story.add("a", "waits for b", Happening.WAIT)

    def attempt(choose: Chooser) -> None:
        tried.append(choose)
        raise DivergedError("another came first", story=story, token="")

    with pytest.raises(DivergedError):
        search.run_next(attempt)

    assert len(tried) == runs


def test_a_schedule_that_fits_the_second_time_loses_nothing() -> None:
    search, diverges, story = BoundedSearch(max_preemptions=1), True, Story(["a"])
    story.add("a", "waits for b", Happening.WAIT)
    found = []

    def attempt(choose: Chooser) -> None:
        nonlocal diverges
        if diverges := not diverges:
            raise DivergedError("another came first", story=story, token="")
        model, schedule = Model({"a": ["step", "step"], "b": ["step", "step"]}), []
        while ready := model.ready():
            schedule.append(choose(ready))
            model.take(schedule[-1])
        found.append(tuple(schedule))

    while search.found:
        search.run_next(attempt)

    assert len(found) == len(set(found)) == search.explored == 4
