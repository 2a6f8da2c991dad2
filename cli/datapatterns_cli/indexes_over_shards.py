"""The commands of `datapatterns indexes`, for those over the shards of a cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation
from datapatterns_cli.shards_cluster import load_cluster

if TYPE_CHECKING:
    from datapatterns.index_table import ShardIndexes, ShardIndexReport, ShardProgress
    from datapatterns.sharding import ShardCluster

_SHARDS = "shards"


@contextmanager
def indexes_over(where: str, database: str | None) -> "Iterator[tuple[ShardIndexes, ShardCluster]]":
    """Give the index tables over the shards of a cluster.

    Raises:
        click.UsageError: It was given none, or a single database is named.
    """
    from datapatterns.index_table import ShardIndexes  # noqa: PLC0415 -- help must not wait for it

    if database is not None:
        raise click.UsageError("an index over shards is in no single one; leave out --database")
    with load_cluster(where) as cluster:
        indexes = ShardIndexes.of(cluster)
        if not indexes.declared:
            raise click.UsageError(f"{where} has no ShardCluster(indexes=ShardIndexes([...]))")
        yield indexes, cluster


def list_over_shards(
    invocation: Invocation, where: str, names: Sequence[str], database: str | None
) -> None:
    """Show how each stands, and on each shard."""
    with indexes_over(where, database) as (indexes, cluster):
        found = indexes.status(cluster, names)
    rows = [
        {
            "name": one.name,
            "database": _SHARDS,
            "state": one.state,
            "rows_done": one.rows_done,
            "rows_expected": one.rows_expected,
            "shards": ", ".join(f"{shard} {state}" for shard, state in one.shards.items()),
            "failure": one.failure,
        }
        for one in found
    ]
    invocation.output.table(rows, empty="no index is declared")
    for one in found:
        if one.advice is not None and not invocation.output.as_json:
            reason = "" if one.failure is None else f" ({one.failure})"
            invocation.output.note(f"{one.name} is {one.state}{reason}: {one.advice}")


def explain_over_shards(invocation: Invocation, where: str, names: Sequence[str]) -> None:
    """Show how each is kept, and why."""
    with indexes_over(where, None) as (indexes, _):
        chosen = {*names} or {*indexes.indexes}
        for name in names:
            indexes.find(name)
        found = [(one.name, one.explain()) for one in indexes.declared if one.name in chosen]
    rows = [
        {
            "name": name,
            "mode": one.mode,
            "chosen_because": one.chosen_because,
            "reason": one.reason,
        }
        for name, one in found
    ]
    invocation.output.table(rows, empty="no index is declared")


def backfill_over_shards(  # noqa: PLR0913 -- one for each option
    invocation: Invocation,
    where: str,
    names: Sequence[str],
    database: str | None,
    *,
    chunk_rows: int,
    pause_seconds: float,
    dry_run: bool,
) -> None:
    """Index the rows from before, of all shards at once, and let indexes be read."""
    from datapatterns.index_table import BuildPace  # noqa: PLC0415 -- help must not wait for it

    rows: list[dict[str, Any]] = []
    with (
        indexes_over(where, database) as (indexes, cluster),
        invocation.output.progress("indexing rows", None) as advance,
    ):
        due = [one.name for one in indexes.status(cluster, names) if one.state != "ready"]
        for name in due:
            found = {}
            if not dry_run:
                pace = BuildPace(chunk_rows, pause_seconds, on_chunk=_telling(advance))
                found = indexes.build(cluster, [name], pace=pace)
            rows.append(
                {
                    "name": name,
                    "database": _SHARDS,
                    "rows": found[name].rows if name in found else None,
                    "done": name in found,
                }
            )
    invocation.output.table(rows, empty="all that are created are read already")


def verify_over_shards(
    invocation: Invocation, where: str, names: Sequence[str], database: str | None
) -> None:
    """Compare them with their tables, both ways."""
    with indexes_over(where, database) as (indexes, cluster):
        found = indexes.verify(cluster, names)
    _tell(invocation, found)


def repair_over_shards(
    invocation: Invocation,
    where: str,
    names: Sequence[str],
    database: str | None,
    *,
    dry_run: bool,
) -> None:
    """Mend what does not agree."""
    with indexes_over(where, database) as (indexes, cluster):
        found = indexes.repair(cluster, names, dry_run=dry_run)
    _tell(invocation, found, exit_code=not dry_run)


def sweep_over_shards(
    invocation: Invocation,
    where: str,
    names: Sequence[str],
    database: str | None,
    *,
    older_than_seconds: float | None,
    dry_run: bool,
) -> None:
    """Remove entries that lead to no row."""
    with indexes_over(where, database) as (indexes, cluster):
        found = indexes.sweep(
            cluster, names, older_than_seconds=older_than_seconds, dry_run=dry_run
        )
    rows = [
        {
            "name": name,
            "database": _SHARDS,
            "orphaned": one.orphaned,
            "removed": one.removed,
            "undecided": one.undecided,
        }
        for name, one in found.items()
    ]
    invocation.output.table(rows, empty="no index is there to be swept")


def conflicts_over_shards(
    invocation: Invocation, where: str, name: str, database: str | None
) -> None:
    """Show the rows that have kept a unique index from being built."""
    with indexes_over(where, database) as (indexes, cluster):
        found = indexes.conflicts(cluster, [name])
    rows = [
        {
            "database": one.shard,
            "key": _written(one.key),
            "primary_key": _written(one.row),
            "holder": _written(one.holder),
        }
        for one in found
    ]
    invocation.output.table(rows, empty="no two rows are known to have one key")


def _telling(advance: Callable[..., None]) -> "Callable[[ShardProgress], None]":
    done: dict[str, int] = {}

    def tell(progress: "ShardProgress") -> None:
        advance(progress.rows_done - done.get(progress.shard, 0))
        done[progress.shard] = progress.rows_done

    return tell


def _tell(
    invocation: Invocation, found: "Mapping[str, ShardIndexReport]", *, exit_code: bool = True
) -> None:
    rows = [
        {
            "name": name,
            "database": _SHARDS,
            "rows": one.rows,
            "missing": one.missing,
            "orphaned": one.orphaned,
            "different": one.different,
            "undecided": one.undecided,
            "mended": one.mended,
            "clean": one.clean,
        }
        for name, one in found.items()
    ]
    invocation.output.table(rows, empty="no index is there to be compared")
    samples = [
        {
            "name": name,
            "kind": sample.kind,
            "key": ", ".join(map(str, sample.key)),
            "primary_key": ", ".join(map(str, sample.primary_key)),
        }
        for name, one in found.items()
        for sample in one.samples
    ]
    if samples and not invocation.output.as_json:
        invocation.output.table(samples)
    wrong = sorted(name for name, one in found.items() if not one.clean)
    if wrong and exit_code:
        from datapatterns import CorruptionError  # noqa: PLC0415 -- help must not wait for it

        error = CorruptionError("not what the table says: " + ", ".join(wrong))
        for name in wrong:
            error.add_note(f"to mend it: datapatterns indexes repair {name} --cluster ...")
        raise error


def _written(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
