"""Workers die where they are told to, and a test whose worker doesn't fails."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from datapatterns.failpoints import failpoint
from datapatterns.testing import FailpointNotReachedError, armed, halted_at, run_until_failpoint

NAME = "relay.sent"
ENOUGH_SECONDS = 20


def work(rounds: str) -> None:
    """A worker: passes the failpoint once in each round."""
    for number in range(int(rounds)):
        sys.stdout.write(f"round {number} of {os.environ.get('SHOP', 'no shop')}\n")
        sys.stdout.flush()
        failpoint(NAME)
    sys.stdout.write("the end")


def fail(_: str) -> None:
    """A worker with a mistake."""
    raise RuntimeError("no such shop")


def test_a_worker_dies_at_the_failpoint_and_does_nothing_after_it() -> None:
    assert run_until_failpoint(work, NAME, "5").splitlines() == ["round 0 of no shop"]


def test_a_worker_dies_at_the_visit_that_was_asked_for() -> None:
    output = run_until_failpoint(work, NAME, "5", visit=3, environment={"SHOP": "Amber"})

    assert output.splitlines() == [f"round {number} of Amber" for number in range(3)]


def test_a_command_may_be_the_worker() -> None:
    program = f"from datapatterns.failpoints import failpoint; failpoint({NAME!r})"

    assert run_until_failpoint([sys.executable, "-c", program], NAME) == ""


def test_nothing_is_flushed_or_closed_at_a_failpoint() -> None:
    program = (
        "import atexit, sys; from datapatterns.failpoints import failpoint\n"
        "atexit.register(print, 'at exit', flush=True)\n"
        "sys.stdout.write('not flushed')\n"
        f"try: failpoint({NAME!r})\n"
        "finally: print('finally', flush=True)\n"
    )

    worker = [sys.executable, "-c", program]
    assert run_until_failpoint(worker, NAME, environment={"PYTHONUNBUFFERED": ""}) == ""


def test_a_worker_that_gets_to_its_end_fails_the_test() -> None:
    with pytest.raises(FailpointNotReachedError, match=r"ended with 0:\n(.*\n)*the end") as caught:
        run_until_failpoint(work, NAME, "2", visit=3)

    assert caught.value.failpoint == NAME


def test_a_worker_that_fails_says_why() -> None:
    with pytest.raises(FailpointNotReachedError, match=r"ended with 1:\n(.*\n)*.*no such shop"):
        run_until_failpoint(fail, NAME, "7")


def test_a_worker_that_ends_without_a_word_fails_the_test() -> None:
    with pytest.raises(FailpointNotReachedError, match="ended with 0, and printed nothing"):
        run_until_failpoint([sys.executable, "-c", ""], NAME)


def test_a_worker_that_gets_nowhere_is_killed() -> None:
    with pytest.raises(FailpointNotReachedError, match=r"ran for 0\.5 s"):
        run_until_failpoint(["/bin/sleep", "60"], NAME, timeout_seconds=0.5)


def test_a_failpoint_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'relay\.dreamt' is no failpoint"):
        run_until_failpoint(work, "relay.dreamt", "1")


def test_a_function_that_another_python_cannot_find_is_refused() -> None:
    def inner() -> None:
        failpoint(NAME)

    for worker in (inner, lambda: None):
        with pytest.raises(ValueError, match="a function of a module"):
            run_until_failpoint(worker, NAME)


def test_an_armed_failpoint_does_what_the_test_says() -> None:
    def fail_here() -> None:
        raise ConnectionError("cut here")

    with pytest.raises(ConnectionError, match="cut here"), armed(NAME, fail_here):
        work("1")
    work("1")


def test_an_armed_failpoint_that_is_not_reached_fails_the_test() -> None:
    with (
        pytest.raises(FailpointNotReachedError, match="the block ended before"),
        armed(NAME, lambda: None, visit=2),
    ):
        work("1")


def test_an_error_of_the_block_is_not_hidden_by_a_failpoint_that_was_not_reached() -> None:
    with pytest.raises(ZeroDivisionError), armed(NAME, lambda: None):
        1 / 0  # noqa: B018 -- it is to fail


def test_a_thread_is_held_at_a_failpoint_until_it_is_released() -> None:
    with ThreadPoolExecutor(1) as pool, halted_at(NAME) as halt:
        working = pool.submit(work, "2")
        halt.wait()
        assert not working.done()

        halt.release()
        working.result(ENOUGH_SECONDS)


def test_a_held_thread_goes_on_when_the_block_ends() -> None:
    with ThreadPoolExecutor(1) as pool:
        with halted_at(NAME) as halt:
            working = pool.submit(work, "2")
            halt.wait()
        working.result(ENOUGH_SECONDS)


def test_waiting_for_a_thread_that_does_not_come_ends() -> None:
    with (
        pytest.raises(FailpointNotReachedError, match=r"in 0\.01 s"),
        halted_at(NAME, timeout_seconds=0.01) as halt,
    ):
        halt.wait()


def test_a_thread_that_nobody_releases_fails() -> None:
    with (
        halted_at(NAME, timeout_seconds=0.01),
        pytest.raises(TimeoutError, match="call release"),
    ):
        work("1")
