"""Time contestants in turn, round after round, so that a machine's moods hit all of them alike.

Absolute times on a shared machine mean little. The ratio of two contestants within one round
means much more; its median over the rounds is what we quote, with the spread beside it.
"""

import gc
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

Role = Literal["ours", "limit", "rival"]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to do the job.

    Attributes:
        run: Does a batch of the job and returns how many operations it was.
        role: ``limit`` is the least that the servers allow, by hand and without guarantees.
        prepare: Done before each batch, outside of its time.
    """

    name: str
    role: Role
    run: Callable[[], int]
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Claim:
    """What is measured, and by whom.

    Attributes:
        unit: What one operation is, such as ``events``.
    """

    title: str
    unit: str
    contestants: Sequence[Contestant]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one contestant did in all rounds; rates are operations per second."""

    name: str
    role: Role
    rates: list[float]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much faster ours was than ``other``: above 1 is faster.

    Attributes:
        low: The lower quartile over the rounds.
        high: The upper quartile.
    """

    other: str
    median: float
    low: float
    high: float


def measure(claim: Claim, *, rounds: int) -> list[Measured]:
    """Run every contestant once to warm up, then ``rounds`` times in turn.

    Each round begins with another contestant, so that nobody always runs first.
    """
    contestants = list(claim.contestants)
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for contestant in contestants:
        contestant.prepare()
        contestant.run()
    for _ in range(rounds):
        contestants.append(contestants.pop(0))
        for contestant in contestants:
            rates[contestant.name].append(_rate(contestant))
    return [Measured(each.name, each.role, rates[each.name]) for each in claim.contestants]


def ratios(measured: Sequence[Measured]) -> list[Ratio]:
    """Compare ours with each of the others, round by round."""
    ours = next(each for each in measured if each.role == "ours")
    return [_ratio(ours, each) for each in measured if each.role != "ours"]


def as_json(claim: Claim, measured: Sequence[Measured]) -> dict[str, object]:
    """Return what a program needs to compare this run with another."""
    return {
        "title": claim.title,
        "unit": claim.unit,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "contestants": [
            {
                "name": each.name,
                "role": each.role,
                "rates": [round(rate, 1) for rate in each.rates],
                "median": round(statistics.median(each.rates), 1),
            }
            for each in measured
        ],
        "ratios": [
            {
                "ours_to": ratio.other,
                "median": round(ratio.median, 3),
                "quartiles": [round(ratio.low, 3), round(ratio.high, 3)],
            }
            for ratio in ratios(measured)
        ],
    }


def _rate(contestant: Contestant) -> float:
    contestant.prepare()
    gc.collect()
    gc.disable()
    try:
        begun = time.perf_counter()
        operations = contestant.run()
        return operations / (time.perf_counter() - begun)
    finally:
        gc.enable()


def _ratio(ours: Measured, other: Measured) -> Ratio:
    by_round = [mine / theirs for mine, theirs in zip(ours.rates, other.rates, strict=True)]
    if len(by_round) == 1:
        return Ratio(other.name, by_round[0], by_round[0], by_round[0])
    low, median, high = statistics.quantiles(by_round, n=4, method="inclusive")
    return Ratio(other.name, median, low, high)
