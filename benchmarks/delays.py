"""How long things take to arrive, at a steady pace; again in turn, and the ratio within a round."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from typing import Any, TypeAlias

from sqlalchemy import URL

from benchmarks.interleaving import Role

Moments: TypeAlias = dict[int, float]
"""When something happened, by position; on the clock that all processes share."""

Sender: TypeAlias = Callable[[URL], Callable[[], int]]
"""Connects what sends; a function of a module. What it returns sends one thing, and says where."""


@dataclass(frozen=True, slots=True)
class Traveller:
    """One way to get things there.

    Attributes:
        run: Sends things and returns how many seconds each was under way.
    """

    name: str
    role: Role
    run: Callable[[], list[float]]


@dataclass(frozen=True, slots=True)
class DelayClaim:
    """What is under way, and by whose hands."""

    title: str
    travellers: Sequence[Traveller]


@dataclass(frozen=True, slots=True)
class Delayed:
    """What one traveller did in all rounds: the median and the worst hundredth of each."""

    name: str
    role: Role
    p50s: list[float]
    p99s: list[float]


def measure_delays(claim: DelayClaim, *, rounds: int) -> list[Delayed]:
    """Run all once to warm up, then ``rounds`` times in turn, each round beginning with another."""
    travellers = list(claim.travellers)
    delayed = {each.name: Delayed(each.name, each.role, [], []) for each in travellers}
    for each in travellers:
        each.run()
    for _ in range(rounds):
        travellers.append(travellers.pop(0))
        for each in travellers:
            gc.collect()
            seconds = sorted(each.run())
            delayed[each.name].p50s.append(statistics.median(seconds))
            delayed[each.name].p99s.append(seconds[len(seconds) * 99 // 100])
    return [delayed[each.name] for each in claim.travellers]


def delays_as_json(claim: DelayClaim, measured: Sequence[Delayed]) -> dict[str, object]:
    """Return what a program needs to compare this run with another."""
    return {
        "title": claim.title,
        "travellers": [
            {
                "name": each.name,
                "role": each.role,
                "p50_ms": round(1_000 * statistics.median(each.p50s), 2),
                "p99_ms": round(1_000 * statistics.median(each.p99s), 2),
            }
            for each in measured
        ],
    }


class PacedSender:
    """A process that sends at a steady pace, whether or not anything arrives."""

    def __init__(self, pipe: "Pipe[Any, Any]") -> None:
        self._pipe = pipe

    def start(self, number: int, *, per_second: float) -> None:
        """Begin to send so many."""
        self._pipe.send((number, per_second))

    def sent(self) -> Moments:
        """Wait until all are sent; return when each was."""
        moments: Moments = self._pipe.recv()
        return moments


@contextmanager
def paced_sender(sender: Sender, url: URL) -> Iterator[PacedSender]:
    """Give a sender, connected."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, sender, url), daemon=True)
    process.start()
    theirs.close()
    ours.recv()
    yield PacedSender(ours)
    ours.close()
    process.join()


def _serve(pipe: "Pipe[Any, Any]", sender: Sender, url: URL) -> None:
    send = sender(url)
    pipe.send("ready")
    while True:
        try:
            number, per_second = pipe.recv()
        except EOFError:
            return
        moments: Moments = {}
        begun = time.perf_counter()
        for place in range(number):
            time.sleep(max(0.0, begun + place / per_second - time.perf_counter()))
            position = send()
            moments[position] = time.perf_counter()
        pipe.send(moments)
