"""The only place that prints: tables for people on stdout, JSON for programs, notes on stderr."""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

import click
import msgspec

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, object]

_ENDLESS = 1_000_000
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]+")  # in JSON it stands in texts only


class Advance(Protocol):
    """Is told what was done since it was called last, and how much there is if that has changed."""

    def __call__(self, amount: int, *, total: int | None = None) -> None:
        """Show that ``amount`` more is done."""


class Output:
    """Prints what a command found, in the way that was asked for.

    Args:
        as_json: Print JSON instead of what is laid out for people.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def table(self, rows: Sequence[Row], *, empty: str = "nothing found") -> None:
        """Print ``rows``, which all have the same keys; as JSON, an object on each line."""
        if self.as_json:
            for row in rows:
                self._print_json(row)
            return
        if not rows:
            self.note(empty)
            return
        from rich.table import Table  # noqa: PLC0415 -- 30 ms that JSON need not wait for

        table = Table(*(name.replace("_", " ") for name in rows[0]), header_style="bold")
        for name, column in zip(rows[0], table.columns, strict=True):
            if all(isinstance(row[name], int | float | Decimal) for row in rows):
                column.justify = "right"
        for row in rows:
            table.add_row(*(_cell(value) for value in row.values()))
        self._print_rich(table)

    def page(self, rows: Sequence[Row], *, limit: int, further: str, empty: str) -> None:
        """Print the first ``limit`` of ``rows``; if there are more, say so, and what shows them."""
        self.table(rows[:limit], empty=empty)
        if len(rows) > limit:
            self.note(f"there are more than these {limit}: {further}")

    def values(self, values: Row) -> None:
        """Print names and their values, one on each line; as JSON, one object."""
        if self.as_json:
            self._print_json(values)
            return
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            click.echo(f"{name.replace('_', ' '):{width}}  {_cell(value)}")

    def line(self, line: str, row: Row) -> None:
        """Print one of many, as it comes: a line for people; as JSON, an object on a line."""
        if self.as_json:
            self._print_json(row)
        else:
            click.echo(_visible(line).replace("\n", "\\n"))

    def text(self, text: str) -> None:
        """Print ``text`` as it is."""
        click.echo(text)

    def note(self, message: str) -> None:
        """Tell something that is not the result, on stderr; as JSON, an object on a line."""
        click.echo(json.dumps({"note": message}) if self.as_json else _visible(message), err=True)

    def ask(self) -> None:
        """Ask whether to go on with what was noted; needs somebody who can answer.

        Raises:
            click.Abort: No.
            click.UsageError: Nobody is there.
        """
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to ask; add --yes to go on")
        click.confirm("Go on?", abort=True, err=True)

    def error(self, message: str, *, name: str, notes: Sequence[str], exit_code: int) -> None:
        """Say on stderr what went wrong, if anybody is there to read it."""
        with _for_whoever_reads_it():
            if self.as_json:
                said = {"error": name, "message": message, "exit_code": exit_code, "notes": notes}
                click.echo(json.dumps(said), err=True)
                return
            click.secho("Error: ", fg="red", nl=False, err=True)
            click.echo(_visible(message), err=True)
            for line in notes:
                click.echo(f"  {_visible(line)}", err=True)

    def misuse(self, error: click.ClickException) -> None:
        """Say on stderr what is wrong with a command line, and where its help is."""
        if self.as_json:
            message, name = error.format_message(), type(error).__name__
            self.error(message, name=name, notes=(), exit_code=error.exit_code)
            return
        shown = StringIO()
        error.show(shown)
        with _for_whoever_reads_it():  # it may quote what a file or the database holds
            click.echo(_visible(shown.getvalue()), nl=False, err=True)

    @property
    def shows_progress(self) -> bool:
        """Whether somebody looks at a terminal."""
        return not self.as_json and sys.stderr.isatty()

    @contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[Advance]:
        """Show on stderr how far something has come; call the result with what was done since.

        Nothing is shown for programs, or where stderr is no terminal.
        """
        if not self.shows_progress:
            yield _nothing
            return
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import Progress, TextColumn  # noqa: PLC0415

        columns = [*Progress.get_default_columns(), TextColumn("{task.fields[rate]}")]
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(title, total=total, rate="")

            def advance(amount: int, *, total: int | None = None) -> None:
                speed = progress.tasks[task].speed
                rate = "" if speed is None else f"{speed:,.0f}/s"
                progress.update(task, advance=amount, total=total, rate=rate)

            yield advance

    def _print_json(self, row: Row) -> None:
        in_unicode = sys.stdout.encoding.lower().startswith("utf")
        text = ", ".join(f"{json.dumps(name)}: {_json_of(value)}" for name, value in row.items())
        click.echo(f"{{{text}}}" if in_unicode else _NOT_ASCII.sub(_escaped, f"{{{text}}}"))

    def _print_rich(self, table: "Table") -> None:
        from rich.console import Console  # noqa: PLC0415

        console = Console(file=sys.stdout, markup=False, highlight=False)
        if not console.is_terminal:  # a pipe has no width at which to cut
            console.width = _ENDLESS
            console.width = console.measure(table).maximum
        with console.capture() as printed:  # rich would take a reader who left for an error
            console.print(table)
        sys.stdout.write(printed.get())
        sys.stdout.flush()


def has_streams() -> bool:
    """Tell whether stdout is there; what is closed of the others becomes nothing."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 -- as long as the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    return sys.stdout is not None


def replace_what_stdout_cannot_say() -> None:
    """Let a letter or a line that the encoding lacks become a question mark, not an error."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def silence(stream: IO[str]) -> None:
    """Send to nowhere what Python still holds back for a reader who has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def _for_whoever_reads_it() -> Iterator[None]:
    try:
        yield
    except OSError:  # the exit code tells it, too
        silence(sys.stderr)


def _nothing(amount: int, *, total: int | None = None) -> None:
    del amount, total


def _json_of(value: object) -> str:
    if isinstance(value, msgspec.Raw):  # it is JSON, and stays as it is
        return bytes(value).decode()
    return json.dumps(value, default=str, ensure_ascii=False)


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _visible(str(value))


def _visible(text: str) -> str:
    """Return ``text`` with control characters written out: data must not steer a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1]
        for character in text
    )
