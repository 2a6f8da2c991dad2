import pytest

from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.flow import read_through
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.steps import (
    Acquire,
    AnyStep,
    Ask,
    CacheSilence,
    Fenced,
    Fetch,
    Fetched,
    Fill,
    Filling,
    Flow,
    Found,
    Granted,
    Load,
    Loaded,
    Look,
    Note,
    Outcome,
    Pause,
    Release,
    Taken,
    Wanted,
)

CODEC: Codec[str] = Codec(str)
POLICY = CachePolicy(ttl_seconds=60, stale_seconds=60, wait_seconds=0.02, early_refresh=0)
LOADED = Loaded("9.99", b"bytes", 60_000)
NOTHING = [Fetched(None)]
BEFORE, AFTER = (59_000.0, 1.0), (61_000.0, 1.0)


ASKED = Fetch((Wanted("price"),))
LEASED = Load((0,), ((),), leased=True)
UNLEASED = Load((0,), (None,), leased=False)


def reading() -> Flow[list[Outcome[str]]]:
    return read_through([Wanted("price")], codec=CODEC, policy=POLICY, token="me")


def acquire(seen: bytes = b"") -> Acquire:
    return Acquire((Ask("price", seen),), "me")


def stored(value: str) -> bytes:
    _, payload = CODEC.canonical(value)
    packed = CODEC.pack(value, payload, took_ms=1, now_ms=0, policy=POLICY, jitter=0)
    assert packed is not None
    return packed.raw


def outcome_of(flow: Flow[list[Outcome[str]]], answer: object) -> Outcome[str]:
    with pytest.raises(StopIteration) as done:
        flow.send(answer)
    [outcome] = done.value.value
    assert isinstance(outcome, Outcome)
    return outcome


def after(flow: Flow[list[Outcome[str]]], *answers: object) -> AnyStep:
    """The step that follows these answers; an error is thrown."""
    step = next(flow)
    for answer in answers:
        step = flow.throw(answer) if isinstance(answer, BaseException) else flow.send(answer)
    return step


def test_a_fresh_value_is_served() -> None:
    flow = reading()

    assert after(flow, [Fetched(stored("9.99"))]) == Look()
    assert outcome_of(flow, BEFORE) == Outcome("9.99", "hit")


def test_the_holder_of_the_lease_loads_and_stores() -> None:
    flow = reading()

    assert next(flow) == ASKED
    assert flow.send(NOTHING) == acquire()
    assert flow.send([Granted()]) == LEASED
    assert flow.send([LOADED]) == Fill((Filling("price", b"bytes", 60_000),), "me")
    assert outcome_of(flow, [True]) == Outcome("9.99", "filled")


def test_a_refused_fill_is_counted_and_not_shared() -> None:
    flow = reading()

    assert after(flow, NOTHING, [Granted()], [LOADED], [False]) == Note("refused")
    outcome = outcome_of(flow, None)
    assert outcome == Outcome("9.99", "loaded")
    assert not outcome.may_be_shared


def test_a_value_past_its_time_is_served_while_another_loads() -> None:
    flow = reading()
    raw = stored("9.99")

    assert after(flow, [Fetched(raw)], AFTER) == acquire(raw[:16])
    assert outcome_of(flow, [Taken(100)]) == Outcome("9.99", "stale")


def test_one_caller_replaces_a_value_past_its_time() -> None:
    assert after(reading(), [Fetched(stored("9.99"))], AFTER, [Granted()]) == LEASED


def test_foreign_bytes_are_counted_and_replaced() -> None:
    flow = reading()

    assert after(flow, [Fetched(b"from another world")]) == Note("foreign")
    assert flow.send(None) == acquire(b"from another wor")


def test_others_wait_and_in_the_end_load_for_themselves() -> None:
    flow = reading()

    assert after(flow, NOTHING, [Taken(3_000)]) == Note("waits")
    assert flow.send(None) == Pause(0.005)
    assert after_pause(flow, [Taken(3_000)]) == Note("waits")
    assert flow.send(None) == Pause(0.01)
    assert after_pause(flow, [Taken(3_000)]) == Note("waits")
    assert flow.send(None) == Pause(0.02)
    assert after_pause(flow, [Taken(3_000)]) == UNLEASED
    assert outcome_of(flow, [LOADED]) == Outcome("9.99", "loaded")


def after_pause(flow: Flow[list[Outcome[str]]], answer: object) -> AnyStep:
    assert flow.send(None) == ASKED
    assert flow.send(NOTHING) == acquire()
    return flow.send(answer)


def test_a_value_stored_while_asking_is_served() -> None:
    flow = reading()

    assert after(flow, NOTHING, [Found(stored("9.99"))]) == Look()
    assert outcome_of(flow, BEFORE) == Outcome("9.99", "hit")


def test_behind_a_fence_nothing_is_stored() -> None:
    flow = reading()

    assert after(flow, NOTHING, [Fenced()]) == UNLEASED
    assert outcome_of(flow, [LOADED]) == Outcome("9.99", "loaded")


@pytest.mark.parametrize("answers", [(), ([Fetched(None)],)], ids=["fetching", "acquiring"])
def test_silence_costs_no_answer(answers: tuple[object, ...]) -> None:
    flow = reading()

    assert after(flow, *answers, CacheSilence()) == UNLEASED
    assert outcome_of(flow, [LOADED]) == Outcome("9.99", "loaded")


def test_silence_while_storing_costs_no_answer() -> None:
    flow = reading()
    after(flow, NOTHING, [Granted()], [LOADED])

    with pytest.raises(StopIteration) as done:
        flow.throw(CacheSilence())

    assert done.value.value == [Outcome("9.99", "loaded")]


@pytest.mark.parametrize("silent", [False, True])
def test_a_failed_load_gives_the_lease_back_and_fails(silent: bool) -> None:  # noqa: FBT001
    flow = reading()

    assert after(flow, NOTHING, [Granted()], ZeroDivisionError()) == Release(("price",), "me")
    with pytest.raises(ZeroDivisionError):
        flow.throw(CacheSilence()) if silent else flow.send(1)


def test_what_is_not_to_be_stored_gives_the_lease_back() -> None:
    flow = reading()

    assert after(flow, NOTHING, [Granted()], [Loaded("9.99", None, 0)]) == Release(("price",), "me")
    assert outcome_of(flow, 1) == Outcome("9.99", "loaded")


def test_an_answer_that_never_fits_is_not_asked_for_ever() -> None:
    flow = reading()
    step = after(flow, NOTHING)
    for number in range(10_000):
        if isinstance(step, Load):
            break
        foreign = number.to_bytes(16)
        step = flow.send([Found(foreign)] if isinstance(step, Acquire) else None)

    assert step == UNLEASED
