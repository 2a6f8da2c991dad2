"""Several questions at once, in threads: nobody works at any of them when the answers are there."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from datapatterns.sharding.fan_out import InThreads

SHARDS = ["a", "b", "c"]


def test_all_are_asked_at_once() -> None:
    together = threading.Barrier(3)

    with ThreadPoolExecutor(3) as executor:
        answers = InThreads(executor).answers(
            {shard: lambda: together.wait(30) for shard in SHARDS}
        )

    assert list(answers) == SHARDS
    assert sorted(answer.result() for answer in answers.values()) == [0, 1, 2]


def test_what_one_raises_waits_for_the_others() -> None:
    failing, done = threading.Event(), []

    def fail() -> None:
        failing.set()
        raise LookupError

    def go_on() -> None:
        assert failing.wait(30)
        done.append("b")

    with ThreadPoolExecutor(2) as executor:
        answers = InThreads(executor).answers({"a": fail, "b": go_on})

    assert done == ["b"]
    assert isinstance(answers["a"].exception(), LookupError)
    assert answers["b"].exception() is None


@pytest.mark.parametrize("in_turns", [False, True])
def test_fewer_threads_than_shards_and_questions_in_questions_are_enough(*, in_turns: bool) -> None:
    with ThreadPoolExecutor(1) as executor:
        fan_out = InThreads(executor)
        ask = fan_out.in_turns if in_turns else fan_out.answers

        def outer() -> list[int]:
            return [answer.result() for answer in ask({s: lambda: 1 for s in SHARDS}).values()]

        answers = ask(dict.fromkeys(SHARDS, outer))

    assert [answer.result() for answer in answers.values()] == [[1, 1, 1]] * 3


def test_in_turns_only_one_works_at_a_time() -> None:
    at_work: list[str] = []
    most = 0

    def work(shard: str) -> None:
        nonlocal most
        for _ in range(200):
            at_work.append(shard)
            time.sleep(0)  # let others go on, if they may
            most = max(most, len(at_work))
            at_work.remove(shard)

    with ThreadPoolExecutor(3) as executor:
        InThreads(executor).in_turns({shard: partial(work, shard) for shard in SHARDS})

    assert most == 1


def test_an_interrupted_wait_leaves_nobody_at_work() -> None:
    """As Ctrl-C does: the connections must not go back to their pools while they are in use."""
    started, go_on = threading.Event(), threading.Event()
    finished: list[str] = []

    def slow() -> None:
        started.set()
        assert go_on.wait(30)
        finished.append("a")

    class Interrupted(ThreadPoolExecutor):
        def submit(self, *args: Any, **named: Any) -> Future[Any]:  # noqa: ANN401 -- as there
            if started.is_set():
                threading.Timer(0.05, go_on.set).start()
                raise KeyboardInterrupt
            future: Future[Any] = super().submit(*args, **named)
            assert started.wait(30)
            return future

    with Interrupted(2) as executor:
        with pytest.raises(KeyboardInterrupt):
            InThreads(executor).answers({"a": slow, "b": slow})
        assert finished == ["a"]


def test_who_is_interrupted_while_a_thread_takes_a_question_on_waits_for_it() -> None:
    """An interrupt comes anywhere: here when the thread is at work, and nobody has its future."""
    started, go_on = threading.Event(), threading.Event()
    finished: list[str] = []

    def slow() -> None:
        started.set()
        assert go_on.wait(30)
        finished.append("a")

    class Interrupted(ThreadPoolExecutor):
        def submit(self, *args: Any, **named: Any) -> Future[Any]:  # noqa: ANN401 -- as there
            super().submit(*args, **named)
            assert started.wait(30)
            raise KeyboardInterrupt

    def later() -> None:
        threading.Timer(0.05, go_on.set).start()

    with Interrupted(2) as executor:
        with pytest.raises(KeyboardInterrupt):
            InThreads(executor).answers({"a": slow, "b": slow}, interrupt=later)
        assert finished == ["a"]


def test_what_no_thread_has_begun_is_left_out_after_an_interrupt() -> None:
    go_on = threading.Event()
    asked: list[str] = []

    def ask(shard: str) -> None:
        asked.append(shard)
        assert go_on.wait(30)

    class Interrupted(ThreadPoolExecutor):
        taken = 0

        def submit(self, *args: Any, **named: Any) -> Future[Any]:  # noqa: ANN401 -- as there
            self.taken += 1
            if self.taken == len(SHARDS):
                raise KeyboardInterrupt
            return super().submit(*args, **named)

    with Interrupted(1) as executor:
        with pytest.raises(KeyboardInterrupt):
            InThreads(executor).answers(
                {shard: partial(ask, shard) for shard in SHARDS}, interrupt=go_on.set
            )
        assert executor.submit(lambda: "free").result(30) == "free"
    assert asked in ([], ["a"])
