"""`datapatterns demo`: a year of a real grocer through all six patterns."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns_grocer.story import Outcome

WEEKS_OF_THE_YEAR = 53


@click.command(cls=Command)
@click.option(
    "--weeks",
    type=click.IntRange(1, WEEKS_OF_THE_YEAR),
    default=4,
    show_default=True,
    help="How many weeks to read, from the first.",
)
@click.option("--full", is_flag=True, help="Read the whole year; takes minutes.")
@click.option("--keep", is_flag=True, help="Leave the data, and say where they are.")
@pass_invocation
def demo(invocation: Invocation, *, weeks: int, full: bool, keep: bool) -> None:
    """Run a grocer's data through all six patterns, and check every figure.

    A real grocer's receipts are spread over four shards, of which one is drained and a fifth takes
    over while baskets are written; they become event streams, read models, a materialized view, an
    index table and cached pages. In the end each derived figure is compared
    with what the files say; the exit code is 5 unless all are equal, to the cent.

    Servers are started for it and gone afterwards. On servers given by --database-url it makes
    databases called datapatterns_demo*, and drops them. DATABASE_URL is left alone.

    \b
      datapatterns demo
      datapatterns demo --weeks 12
      datapatterns demo --full
      datapatterns demo --database-url postgresql://postgres@localhost --keep
    """  # noqa: D301
    if invocation.option("app") or invocation.option("schema"):
        raise click.UsageError("the demo has a data layer of its own; leave --app and --schema out")
    outcome = _play(invocation, weeks=WEEKS_OF_THE_YEAR if full else weeks, keep=keep)
    if invocation.output.as_json:
        invocation.output.values(_report(outcome))
    if not outcome.is_exact:
        from datapatterns import CorruptionError  # noqa: PLC0415 -- help must not wait for it

        wrong = ", ".join(check.what for check in outcome.checks if not check.is_exact)
        raise CorruptionError(f"not what the files say: {wrong}; please report it")


def _play(invocation: Invocation, *, weeks: int, keep: bool) -> "Outcome":
    try:
        from datapatterns_grocer.screen import Screen  # noqa: PLC0415 -- needs an extra
        from datapatterns_grocer.story import tell  # noqa: PLC0415
    except ModuleNotFoundError as error:
        from datapatterns.errors import MissingExtraError  # noqa: PLC0415

        raise MissingExtraError("the demo", extra="demo") from error
    return tell(
        weeks=weeks,
        screen=Screen(quiet=invocation.output.as_json),
        database_url=invocation.option("database_url"),
        redis_url=invocation.option("redis_url"),
        keep=keep,
    )


def _report(outcome: "Outcome") -> dict[str, object]:
    return {
        "weeks": outcome.weeks,
        "is_exact": outcome.is_exact,
        "seconds": {name: round(took, 3) for name, took in outcome.seconds.items()},
        "checks": [asdict(check) | {"is_exact": check.is_exact} for check in outcome.checks],
    }
