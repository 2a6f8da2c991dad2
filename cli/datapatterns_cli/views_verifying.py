"""`datapatterns views verify`: does each view show what its query gives?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from datapatterns_cli.amounts import Amount
from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command
from datapatterns_cli.views_conditions import condition_of
from datapatterns_cli.views_looking import statuses

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.materialized_view import Difference, ViewVerification

_SEEDS: Final = 2**32
_ATTEMPTS_MAX: Final = 5
_WHOLE: Final = ("fresh", "stale", "overdue")


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--sample", type=Amount(), help="Compare only so many, as 0.05, 5% or 10000 rows.")
@click.option(
    "--seed", type=click.IntRange(0, _SEEDS - 1), help="Which groups a sample has.  [default: any]"
)
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Compare only these rows, such as 'week>=7'; several are all meant.",
)
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="How many differences."
)
@pass_invocation
def verify(
    invocation: Invocation,
    *,
    names: tuple[str, ...],
    sample: float | None,
    seed: int | None,
    conditions: tuple[str, ...],
    limit: int,
) -> None:
    """Compare views with their queries: all that the app declares and are filled, or these.

    Exits with 5 if one of them is not what its query gives.

    Each is compared in one snapshot, while writers go on. On columns that the query groups by,
    --where is as quick as in the query itself. A sample takes other groups each time, unless a
    seed is given; the seed is told.

    \b
      datapatterns views verify --app shop.data:layer
      datapatterns views verify weekly_sales --sample 5% --json
      datapatterns views verify weekly_sales --where 'week>=7' --where 'week<9'
    """  # noqa: D301
    if conditions and len(names) != 1:
        raise click.UsageError("--where is about the columns of one view; name it")
    layer = invocation.layer()
    part = {"sample": sample, "seed": seed, "where": condition_of(conditions)}
    rows: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    wrong: list[str] = []
    wanted = _wanted(invocation, layer, names)
    with invocation.output.progress("verifying views", len(wanted)) as advance:
        for name in wanted:
            found = _verified(layer, name, part, limit)
            advance(1)
            rows.append(_row(name, found))
            differences += [_difference(name, one) for one in found.differences]
            if invocation.output.as_json:
                rows[-1]["differences"] = [
                    {"kind": one.kind.value, "row": one.row} for one in found.differences
                ]
            wrong += [] if found.matches else [name]
    invocation.output.table(rows, empty="no view is filled, so nothing was verified")
    if differences and not invocation.output.as_json:
        invocation.output.table(differences)
    if wrong:
        raise _corruption(wrong)


def _wanted(invocation: Invocation, layer: "DataLayer", names: Sequence[str]) -> list[str]:
    if not layer.views.declared:
        raise click.UsageError(
            "no view is declared; name the app that has DataLayer(views=[...]): --app"
        )
    if names:
        return [layer.views.find(name).name for name in dict.fromkeys(names)]
    found = statuses(layer, (), limit=1)
    for one in found:
        if one.state.value not in _WHOLE:
            invocation.output.note(f"{one.name} is left out: {one.state}")
    return [one.name for one in found if one.state.value in _WHOLE]


def _verified(
    layer: "DataLayer", name: str, part: dict[str, Any], limit: int
) -> "ViewVerification":
    from datapatterns import ConflictError  # noqa: PLC0415 -- help must not wait for it

    view = layer.views.find(name)
    for attempt in range(1, _ATTEMPTS_MAX + 1):
        try:
            return layer.views.verify(layer.engine, view, limit=limit, **part)
        except ConflictError:  # a table was truncated, or the view refreshed, just now
            if attempt == _ATTEMPTS_MAX:
                raise
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    raise AssertionError("the last attempt returns or raises")


def _row(name: str, found: "ViewVerification") -> dict[str, Any]:
    return {
        "name": name,
        "matches": found.matches,
        "rows": found.rows,
        "share": round(found.share, 6),
        "seed": found.seed,
        "differing": len(found.differences),
    }


def _difference(name: str, one: "Difference") -> dict[str, Any]:
    shown = ", ".join(f"{column} {value!s}" for column, value in one.row.items())
    return {"name": name, "kind": one.kind.value, "row": shown}


def _corruption(wrong: Sequence[str]) -> Exception:
    from datapatterns import CorruptionError  # noqa: PLC0415 -- help must not wait for it

    error = CorruptionError("not what the query gives: " + ", ".join(wrong))
    error.add_note("find out what it has missed, such as writes while triggers were disabled")
    for name in wrong:
        error.add_note(f"to mend it: datapatterns views rebuild {name}")
    return error
