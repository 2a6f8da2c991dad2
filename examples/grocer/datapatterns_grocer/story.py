"""The demo from beginning to end: each chapter played, then every figure checked."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from datapatterns_grocer.chapters import (
    baskets_on_shards,
    by_product,
    event_store,
    found_over_shards,
    growing_shards,
    product_pages,
    read_models,
    receipts,
    weekly_sales,
)
from datapatterns_grocer.dataset import LAST_WEEK
from datapatterns_grocer.screen import Screen
from datapatterns_grocer.stage import Stage, set_stage
from datapatterns_grocer.truth import Check

CHAPTERS: tuple[ModuleType, ...] = (
    baskets_on_shards,
    found_over_shards,
    growing_shards,
    event_store,
    read_models,
    weekly_sales,
    by_product,
    product_pages,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the demo ended.

    Attributes:
        checks: What was compared with the files.
        seconds: How long each part took, by name.
    """

    weeks: int
    checks: list[Check]
    seconds: dict[str, float]

    @property
    def is_exact(self) -> bool:
        """Whether every derived figure is what the files say."""
        return all(check.is_exact for check in self.checks)


def tell(
    *,
    weeks: int,
    screen: Screen,
    database_url: str | None = None,
    redis_url: str | None = None,
    keep: bool = False,
) -> Outcome:
    """Play every chapter, verify all of them, and clear up.

    Args:
        weeks: How many weeks of the year, 1 to 53.
        screen: Where it is shown.
        database_url: A server on which databases may be created; unless given, one is started.
        redis_url: A Redis or Valkey; unless given, one is started.
        keep: Leave the data, and say where they are.

    Raises:
        ValueError: There are no such weeks.
    """
    if not 1 <= weeks <= LAST_WEEK:
        raise ValueError(f"there are weeks 1 to {LAST_WEEK}; {weeks} is none of them")
    begun = time.perf_counter()
    with set_stage(
        weeks=weeks, screen=screen, database_url=database_url, redis_url=redis_url, keep=keep
    ) as stage:
        took = {"setting the stage": time.perf_counter() - begun}
        for chapter in (receipts, *CHAPTERS):
            took[_name(chapter)] = _timed(chapter, stage)
        begun = time.perf_counter()
        checks = list(_verify(stage))
        took["verify"] = time.perf_counter() - begun
        return Outcome(weeks, checks, took)


def _verify(stage: Stage) -> Iterator[Check]:
    stage.screen.heading(
        "Verify", "Every derived figure beside what DuckDB computes from the files, to the cent."
    )
    checks = [check for chapter in CHAPTERS for check in chapter.verify(stage)]
    stage.screen.table(
        ["derived", "rows", "missing", "unexpected", ""],
        [
            [
                check.what,
                check.rows,
                check.missing,
                check.unexpected,
                "[green]exact" if check.is_exact else "[bold red]DIFFERS",
            ]
            for check in checks
        ],
    )
    for check in checks:
        for example in check.examples:
            stage.screen.say(f"[red]{check.what}: {example}")
    return iter(checks)


def _timed(chapter: ModuleType, stage: Stage) -> float:
    begun = time.perf_counter()
    chapter.play(stage)
    return time.perf_counter() - begun


def _name(chapter: ModuleType) -> str:
    return chapter.__name__.rpartition(".")[2].replace("_", " ")
