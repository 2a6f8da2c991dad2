"""`datapatterns indexes`: how index tables stand, and what is done with them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.indexes_mending import conflicts, retry, sweep
from datapatterns_cli.indexes_over_shards import (
    backfill_over_shards,
    explain_over_shards,
    list_over_shards,
    repair_over_shards,
    verify_over_shards,
)
from datapatterns_cli.indexes_places import (
    WHOLE,
    engines_of,
    index_cluster,
    index_database,
    index_names,
    layer_of,
    standing_of,
)
from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command, Group, dry_run_option

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.index_table import BackfillProgress, IndexTable, VerifyReport

_ADVICE = {
    "missing": "create() it in a migration",
    "changed": "drop() it, create() it anew in a migration, then datapatterns indexes backfill",
    "detached": "mend it: datapatterns indexes repair {name}",
    "building": "index the rest: datapatterns indexes backfill {name}",
    "built": "let it be read: datapatterns indexes backfill {name}",
    "verifying": "let it be read: datapatterns indexes backfill {name}",
    "failed": "datapatterns indexes conflicts {name}, then datapatterns indexes retry {name}",
}


@click.group(cls=Group)
def indexes() -> None:
    """Look at index tables, build, verify and mend them.

    \b
      datapatterns indexes list --app shop.data:layer
      datapatterns indexes backfill customer_by_email --app shop.data:layer
      datapatterns indexes verify --app shop.data:layer
      datapatterns indexes lag --app shop.data:layer
      datapatterns indexes list --cluster shop.data:cluster
    """  # noqa: D301


@indexes.command("list", cls=Command)
@index_names
@index_database
@index_cluster
@pass_invocation
def list_indexes(
    invocation: Invocation, *, names: tuple[str, ...], database: str | None, cluster: str | None
) -> None:
    """Show how each index stands in each database that has its table.

    What is wrong with one is told on stderr, with what to do.

    \b
      datapatterns indexes list --app shop.data:layer
    """  # noqa: D301
    if cluster is not None:
        list_over_shards(invocation, cluster, names, database)
        return
    found = list(standing_of(layer_of(invocation), names, database))
    rows = [
        {
            "name": one.name,
            "database": where,
            "state": one.state,
            "rows_done": one.rows_done,
            "table": index.definition.base.fullname,
            "on": ", ".join(index.definition.key),
            "unique": index.definition.unique,
            "mode": index.definition.mode,
            "problem": one.problem,
        }
        for where, index, one in found
    ]
    invocation.output.table(rows, empty="no database has a table that an index is declared on")
    for where, _, one in found:
        if not invocation.output.as_json and one.state in _ADVICE:
            advice = _ADVICE[one.state].format(name=one.name)
            why = "" if one.problem is None else f" ({one.problem})"
            invocation.output.note(f"{one.name} in {where} is {one.state}{why}: {advice}")
        elif not invocation.output.as_json and one.problem is not None:
            invocation.output.note(f"{one.name} in {where} reads all rows again: {one.problem}")


@indexes.command(cls=Command)
@index_names
@index_cluster
@pass_invocation
def explain(invocation: Invocation, *, names: tuple[str, ...], cluster: str | None) -> None:
    """Show how each index is kept, and why that way.

    \b
      datapatterns indexes explain --app shop.data:layer
    """  # noqa: D301
    if cluster is not None:
        explain_over_shards(invocation, cluster, names)
        return
    rows = []
    for index in layer_of(invocation).indexes.named(names):
        explanation = index.explain()
        rows.append(
            {
                "name": index.name,
                "mode": explanation.mode,
                "chosen_because": explanation.chosen_because,
                "reason": explanation.reason,
            }
        )
    invocation.output.table(rows, empty="no index is declared")


@indexes.command(cls=Command)
@index_names
@index_database
@pass_invocation
def lag(invocation: Invocation, *, names: tuple[str, ...], database: str | None) -> None:
    """Show how far indexes of mode async are behind their tables.

    One that must_rebuild reads all rows anew the next time a worker comes to it.

    \b
      datapatterns indexes lag --app shop.data:layer
    """  # noqa: D301
    rows = [
        {
            "name": one.name,
            "database": where,
            "pending_rows": None if one.lag is None else one.lag.pending_rows,
            "behind_seconds": None if one.lag is None else round(one.lag.behind_seconds, 3),
            "must_rebuild": None if one.lag is None else one.lag.must_rebuild,
            "state": one.state,
        }
        for where, index, one in standing_of(layer_of(invocation), names, database)
        if index.definition.mode == "async"
    ]
    invocation.output.table(rows, empty="all indexes are kept by their writers, and never behind")


@indexes.command(cls=Command)
@index_names
@index_database
@index_cluster
@click.option(
    "--chunk-rows",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="How many rows a transaction locks against writers; over shards, only their entries.",
)
@click.option(
    "--pause",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Seconds to leave the database alone after each chunk.",
)
@dry_run_option
@pass_invocation
def backfill(  # noqa: PLR0913 -- one for each option
    invocation: Invocation,
    *,
    names: tuple[str, ...],
    database: str | None,
    cluster: str | None,
    chunk_rows: int,
    pause: float,
    dry_run: bool,
) -> None:
    """Index the rows from before and let indexes be read: all that are created, or these.

    Writers go on. It takes up where it, or another process, has ended. An index that does not
    agree with its table then is not read, and why is told.

    \b
      datapatterns indexes backfill --app shop.data:layer
      datapatterns indexes backfill customer_by_email --chunk-rows 1000 --pause 0.1
      datapatterns indexes backfill --cluster shop.data:cluster
    """  # noqa: D301
    if cluster is not None:
        backfill_over_shards(
            invocation,
            cluster,
            names,
            database,
            chunk_rows=chunk_rows,
            pause_seconds=pause,
            dry_run=dry_run,
        )
        return
    layer = layer_of(invocation)
    due = [
        (where, index)
        for where, index, one in standing_of(layer, names, database)
        if one.state in ("building", "built", "verifying")
    ]
    rows: list[dict[str, Any]] = []
    with invocation.output.progress("indexing rows", None) as advance:
        for where, index in due:
            report = None
            if not dry_run:
                report = _built(layer, where, index, advance, chunk_rows, pause)
            rows.append(
                {
                    "name": index.name,
                    "database": where,
                    "rows": None if report is None else report.rows,
                    "done": report is not None,
                }
            )
    invocation.output.table(rows, empty="all that are created are read already")


@indexes.command(cls=Command)
@index_names
@index_database
@index_cluster
@pass_invocation
def verify(
    invocation: Invocation, *, names: tuple[str, ...], database: str | None, cluster: str | None
) -> None:
    """Compare indexes with their tables, both ways; exits with 5 if they differ.

    One whose rows from before are still coming lacks them, so it is left out.

    \b
      datapatterns indexes verify --app shop.data:layer
    """  # noqa: D301
    if cluster is not None:
        verify_over_shards(invocation, cluster, names, database)
        return
    _tell(invocation, _compared(invocation, names, database))


@indexes.command(cls=Command)
@index_names
@index_database
@index_cluster
@dry_run_option
@pass_invocation
def repair(
    invocation: Invocation,
    *,
    names: tuple[str, ...],
    database: str | None,
    cluster: str | None,
    dry_run: bool,
) -> None:
    """Make indexes what their tables say; exits with 5 if something is left.

    Writers of the table wait meanwhile. With --dry-run it says what is wrong.

    \b
      datapatterns indexes repair customer_by_email --app shop.data:layer
    """  # noqa: D301
    if cluster is not None:
        repair_over_shards(invocation, cluster, names, database, dry_run=dry_run)
        return
    reports = _compared(invocation, names, database, repaired=not dry_run)
    _tell(invocation, reports, exit_code=not dry_run)


def _compared(
    invocation: Invocation,
    names: Sequence[str],
    database: str | None,
    *,
    repaired: bool = False,
) -> "list[tuple[str, VerifyReport]]":
    layer = layer_of(invocation)
    found = []
    for where, index, one in standing_of(layer, names, database):
        if one.state in WHOLE:
            do = layer.indexes.repair if repaired else layer.indexes.verify
            found.append((where, do(engines_of(layer)[where], [index.name])[index.name]))
        else:
            invocation.output.note(f"{one.name} in {where} is left out: {one.state}")
    return found


def _built(
    layer: "DataLayer",
    where: str,
    index: "IndexTable",
    advance: Callable[..., None],
    chunk_rows: int,
    pause_seconds: float,
) -> "VerifyReport":
    before = 0

    def on_chunk(_name: str, progress: "BackfillProgress") -> None:
        nonlocal before
        advance(progress.rows_done - before)
        before = progress.rows_done

    return layer.indexes.build(
        engines_of(layer)[where],
        [index.name],
        chunk_rows=chunk_rows,
        pause_seconds=pause_seconds,
        on_chunk=on_chunk,
    )[index.name]


def _tell(
    invocation: Invocation,
    reports: "Sequence[tuple[str, VerifyReport]]",
    *,
    exit_code: bool = True,
) -> None:
    rows = [
        {
            "name": one.index,
            "database": where,
            "rows": one.rows,
            "missing": one.missing,
            "orphaned": one.orphaned,
            "different": one.different,
            "clean": one.clean,
        }
        for where, one in reports
    ]
    invocation.output.table(rows, empty="no index is there to be compared")
    samples = [
        {
            "name": one.index,
            "database": where,
            "kind": sample.kind,
            "key": ", ".join(map(str, sample.key)),
            "primary_key": ", ".join(map(str, sample.primary_key)),
        }
        for where, one in reports
        for sample in one.samples
    ]
    if samples and not invocation.output.as_json:
        invocation.output.table(samples)
    wrong = sorted({one.index for _, one in reports if not one.clean})
    if wrong and exit_code:
        from datapatterns import CorruptionError  # noqa: PLC0415 -- help must not wait for it

        error = CorruptionError("not what the table says: " + ", ".join(wrong))
        for name in wrong:
            error.add_note(f"to mend it: datapatterns indexes repair {name}")
        raise error


for _command in (conflicts, retry, sweep):
    indexes.add_command(_command)
