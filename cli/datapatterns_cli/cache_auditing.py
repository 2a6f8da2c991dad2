"""`datapatterns cache audit`: is what the caches hold what the database says?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.cache_aside import CachedFunction, CacheViolation


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[CACHE]...")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=1_000,
    show_default=True,
    help="How many entries of each cache to look at.",
)
@click.option("--repair", is_flag=True, help="Forget those that are wrong.")
@click.option("--show-values", is_flag=True, help="Show what each says, and what is right.")
@pass_invocation
def audit(
    invocation: Invocation, *, names: tuple[str, ...], limit: int, repair: bool, show_values: bool
) -> None:
    """Compare entries with the database: of all caches that the app declares, or of these.

    Exits with 5 if one is wrong; also with --repair, which forgets it. What is called wrong is
    certain: whatever had been committed has been sent to Redis by then.

    \b
      datapatterns cache audit --app shop.data:layer
      datapatterns cache audit product --limit 100000 --json
      datapatterns cache audit product --repair
    """  # noqa: D301
    functions = _functions(invocation, invocation.layer(), names)
    rows: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    with invocation.output.progress("auditing entries", len(functions) * limit) as advance:
        for name, function in functions.items():
            found = function.audit(limit=limit, repair=repair, on_checked=advance)
            wrong += [_violation(name, each, show_values=show_values) for each in found.violations]
            rows.append(
                {
                    "cache": name,
                    "checked": found.checked,
                    "skipped": found.skipped,
                    "violations": len(found.violations),
                }
            )
    if invocation.output.as_json:
        rows = [
            {**row, "wrong": [each for each in wrong if each["cache"] == row["cache"]]}
            for row in rows
        ]
    invocation.output.table(rows)
    if wrong and not invocation.output.as_json:
        invocation.output.table(wrong)
    if wrong:
        raise _corruption(rows, repair=repair)


def _violation(cache: str, found: "CacheViolation[Any]", *, show_values: bool) -> dict[str, Any]:
    row = {"cache": cache, "key": found.key}
    return {**row, "cached": found.cached, "loaded": found.loaded} if show_values else row


def _functions(
    invocation: Invocation, layer: "DataLayer", names: Sequence[str]
) -> "dict[str, CachedFunction[..., Any]]":
    caches = layer.caches
    for name in names:
        if name not in caches:
            listed = ", ".join(caches) or "none"
            raise click.UsageError(f"no cache {name!r} is declared; there are: {listed}")
    if not caches:
        raise click.UsageError(
            "no cache is declared; name the app that keeps what layer.cache() returns: --app"
        )
    found = {}
    for name in names or caches:
        function = caches[name].function
        if function is None:
            invocation.output.note(f"{name} is left out: it has no cached function to load with")
        else:
            found[name] = function
    return found


def _corruption(rows: Sequence[dict[str, Any]], *, repair: bool) -> Exception:
    from datapatterns import CorruptionError  # noqa: PLC0415 -- help must not wait for it

    wrong = {row["cache"]: row["violations"] for row in rows if row["violations"]}
    told = ", ".join(f"{count} of {name}" for name, count in wrong.items())
    error = CorruptionError(f"entries that are not what the database says: {told}")
    error.add_note("a write was not named: invalidate_in() with it, watch() or capture() its table")
    if repair:
        error.add_note("they are forgotten now")
    for name in () if repair else wrong:
        error.add_note(f"to forget them: datapatterns cache audit {name} --repair")
    return error
