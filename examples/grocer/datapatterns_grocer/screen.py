"""What the demo prints: headings, progress, small tables and bars that fit 100 columns."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

T = TypeVar("T")

WIDTH = 100
BAR = 40
SHORT_SECONDS = 0.01


class Screen:
    """Prints for people; ``quiet`` prints nothing, for those who only want the report."""

    def __init__(self, *, quiet: bool = False) -> None:
        width = min(Console().width, WIDTH)
        self._console = Console(quiet=quiet, highlight=False, width=width)

    def heading(self, title: str, promise: str) -> None:
        """Begin a chapter: its name, and what it is about to show."""
        self._console.print()
        self._console.rule(f"[bold]{title}", align="left")
        self._console.print(f"[dim]{promise}")

    def say(self, sentence: str) -> None:
        """Print one finding."""
        self._console.print(f"  {sentence}")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a short table; numbers are aligned to the right."""
        rows = [list(row) for row in rows]
        table = Table(box=None, padding=(0, 2), header_style="bold dim")
        for index, name in enumerate(columns):
            numeric = all(isinstance(row[index], int | float) for row in rows) and bool(rows)
            table.add_column(name, justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*(_shown(cell) for cell in row))
        self._console.print(table)

    def bars(self, values: Mapping[str, int], unit: str) -> None:
        """Plot one bar for each name."""
        most = max(values.values(), default=0) or 1
        label = max(map(len, values), default=0)
        for name, value in values.items():
            bar = "█" * round(BAR * value / most)
            self._console.print(f"  {name:<{label}} [cyan]{bar:<{BAR}}[/] {value:>9,} {unit}")

    def track(self, items: Iterable[T], doing: str, *, total: int) -> Iterator[T]:
        """Yield the items behind a progress bar."""
        with self.progress(doing, total=total) as advance:
            for item in items:
                yield item
                advance(1)

    @contextmanager
    def progress(self, doing: str, *, total: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar; call what you get with how much was done."""
        with Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=BAR),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=5,
        ) as progress:
            task = progress.add_task(doing, total=total)
            yield lambda amount: progress.advance(task, amount)


def money(cents: int) -> str:
    """Return cents as dollars: 149 is 1.49."""
    sign, cents = ("-", -cents) if cents < 0 else ("", cents)
    return f"{sign}{cents // 100:,}.{cents % 100:02}"


def milliseconds(seconds: float) -> str:
    """Return a duration with as many digits as mean something."""
    digits = 2 if seconds < SHORT_SECONDS else 0
    return f"{seconds * 1000:,.{digits}f} ms"


def _shown(cell: object) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.2f}"
    return "" if cell is None else str(cell)
