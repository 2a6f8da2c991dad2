"""Run the benchmarks: ``python -m benchmarks [NAME ...] [--rounds N]``."""

import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click
from rich.console import Console
from rich.table import Table

from benchmarks.delays import DelayClaim, Delayed, delays_as_json, measure_delays
from benchmarks.interleaving import Claim, Measured, as_json, measure, ratios

HERE = Path(__file__).parent
NAMES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


Stage = Callable[[], AbstractContextManager[Claim | DelayClaim]]
"""Sets the stage, yields the claim, cleans up."""


def stages(module: ModuleType) -> list[Stage]:
    """Return the claims of a ``bench_*.py``: that of ``claim()``, or one for each of its CASES."""
    if not hasattr(module, "CASES"):
        return [module.claim]
    return [partial(module.claim, case) for case in module.CASES]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=HERE / "results",
    help="Folder for one JSON file for each benchmark.",
)
def main(names: tuple[str, ...], rounds: int, results: Path) -> None:
    """Measure each claim beside the raw limit and the rival, in the same rounds."""
    results.mkdir(parents=True, exist_ok=True)
    for name in names or NAMES:
        reports = []
        for stage in stages(import_module(f"benchmarks.bench_{name}")):
            with stage() as claim:
                reports.append(_report(claim, rounds=rounds))
        (results / f"{name}.json").write_text(json.dumps(reports, indent=2))


def _report(claim: Claim | DelayClaim, *, rounds: int) -> dict[str, object]:
    if isinstance(claim, DelayClaim):
        delayed = measure_delays(claim, rounds=rounds)
        _show_delays(claim, delayed)
        return delays_as_json(claim, delayed)
    measured = measure(claim, rounds=rounds)
    _show(claim, measured)
    return as_json(claim, measured)


def _show_delays(claim: DelayClaim, delayed: list[Delayed]) -> None:
    table = Table("", "role", "p50 ms", "p99 ms", title=claim.title)
    for each in delayed:
        p50, p99 = (1_000 * statistics.median(of) for of in (each.p50s, each.p99s))
        table.add_row(each.name, each.role, f"{p50:.1f}", f"{p99:.1f}")
    Console().print(table)


def _show(claim: Claim, measured: list[Measured]) -> None:
    ours_to = {ratio.other: ratio for ratio in ratios(measured)}
    table = Table("", "role", f"{claim.unit}/s", "ours : it", "quartiles", title=claim.title)
    for each in measured:
        ratio = ours_to.get(each.name)
        table.add_row(
            each.name,
            each.role,
            f"{statistics.median(each.rates):,.0f}",
            f"{ratio.median:.2f}" if ratio else "",
            f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
