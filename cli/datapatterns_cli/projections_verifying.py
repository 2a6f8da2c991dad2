"""`datapatterns projections verify`: is each read model what the log says?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from datapatterns_cli.amounts import Amount
from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.projections_telling import Told
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.cqrs import (
        AnyProjection,
        Determinism,
        Difference,
        ProjectionProgress,
        Verification,
    )

_SEEDS: Final = 2**32
_WHOLE: Final = ("ready", "live", "standby")


@dataclass(frozen=True)
class _Asked:
    """What was asked for at the prompt."""

    sample: float | None
    seed: int | None
    limit: int
    determinism: bool
    page_events: int | None


@dataclass(frozen=True)
class _Wrong:
    """A read model that is not what it should be, or does not stay so."""

    name: str
    unsteady: bool


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--version", type=click.IntRange(1), help="Which version.  [default: the newest declared]"
)
@click.option("--sample", type=Amount(), help="Compare only so many, as 0.05, 5% or 10000 rows.")
@click.option(
    "--seed", type=click.IntRange(0, _SEEDS - 1), help="Which keys a sample has.  [default: any]"
)
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="How many differences."
)
@click.option(
    "--determinism", is_flag=True, help="Also fold all twice: does the same come of it each time?"
)
@click.option("--page-events", type=click.IntRange(1), help="How many are applied at once.")
@pass_invocation
def verify(  # noqa: PLR0913 -- click's options
    invocation: Invocation,
    *,
    names: tuple[str, ...],
    version: int | None,
    sample: float | None,
    seed: int | None,
    limit: int,
    determinism: bool,
    page_events: int | None,
) -> None:
    """Compare read models with the log: all that the app declares, or these.

    Exits with 5 if one of them is not what the log says.

    The log is folded anew into temporary tables, or in memory for Redis. Workers go on meanwhile.
    A sample takes other keys each time, unless a seed is given; the seed is told.

    \b
      datapatterns projections verify --app shop.data:layer
      datapatterns projections verify sales_by_product --sample 5% --json
      datapatterns projections verify sales_by_product --version 2 --determinism
    """  # noqa: D301
    if version is not None and len(names) != 1:
        raise click.UsageError("--version is that of one read model; name it")
    layer = invocation.layer()
    asked = _Asked(sample, seed, limit, determinism, page_events)
    wanted = _wanted(invocation, layer, names, version)
    rows: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    wrong: list[_Wrong] = []
    for projection in wanted:
        found = _verified(invocation, layer, projection, asked)
        steady = _checked(invocation, layer, projection, asked) if determinism else None
        rows.append(_row(projection, found, steady))
        differences += [_difference(projection, one) for one in found.differences]
        if invocation.output.as_json:
            rows[-1]["differences"] = [_whole(one) for one in found.differences]
            rows[-1]["unsteady"] = None if steady is None else _unsteady(steady)
        elif steady is not None:
            _tell(invocation, projection, steady)
        unsteady = steady is not None and not steady.steady
        if unsteady or not found.matches:
            wrong.append(_Wrong(projection.name, unsteady))
    invocation.output.table(rows, empty="nothing of it is whole, so nothing was verified")
    if differences and not invocation.output.as_json:
        invocation.output.table(differences)
    if wrong:
        raise _corruption(wrong)


def _wanted(
    invocation: Invocation, layer: "DataLayer", names: tuple[str, ...], version: int | None
) -> "list[type[AnyProjection]]":
    """Return those that are named; of all, if none is, those that are whole."""
    projections = layer.projections
    if names:
        return [projections.find(name, version=version) for name in dict.fromkeys(names)]
    if not projections.declared:
        raise click.UsageError(
            "nothing is declared to be verified; name the app that has"
            " DataLayer(projections=[...]): --app"
        )
    with layer.read_engine.connect().execution_options(isolation_level="READ COMMITTED") as conn:
        standing = {(one.name, one.version): one.status for one in projections.status(conn)}
    wanted = []
    for projection in projections.declared:
        status = standing.get((projection.name, projection.version), "never run")
        if status in _WHOLE:
            wanted.append(projection)
        else:
            invocation.output.note(
                f"{projection.name} version {projection.version} is left out: {status}"
            )
    return wanted


def _verified(
    invocation: Invocation, layer: "DataLayer", projection: "type[AnyProjection]", asked: _Asked
) -> "Verification":
    sample = asked.sample
    if sample is not None and not projection.handlers:
        sample = None
        invocation.output.note(f"{projection.name} is verified whole: statements run over all keys")
    with _told(invocation, layer, f"verifying {projection.name}") as on_page:
        return layer.projections.verify(
            layer.read_engine,
            projection,
            sample=sample,
            seed=asked.seed,
            limit=asked.limit,
            page_events=asked.page_events,
            on_page=on_page,
        )


def _checked(
    invocation: Invocation, layer: "DataLayer", projection: "type[AnyProjection]", asked: _Asked
) -> "Determinism":
    with _told(invocation, layer, f"folding {projection.name} again") as on_page:
        return layer.projections.check_determinism(
            layer.read_engine, projection, page_events=asked.page_events, on_page=on_page
        )


@contextmanager
def _told(
    invocation: Invocation, layer: "DataLayer", title: str
) -> "Iterator[Callable[[ProjectionProgress], None]]":
    with layer.engine.connect().execution_options(isolation_level="READ COMMITTED") as conn:
        mark = layer.events.high_water_mark(conn)
    with invocation.output.progress(title, mark) as advance:
        yield Told(invocation, title, 0, mark, advance).page


def _row(
    projection: "type[AnyProjection]", found: "Verification", steady: "Determinism | None"
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": projection.name,
        "version": projection.version,
        "matches": found.matches,
        "position": found.position,
        "rows": found.rows,
        "share": round(found.share, 6),
        "seed": found.seed,
        "differing": len(found.differences),
        "parked": found.parked,
        "skipped": found.skipped,
        "checksum": found.checksum or None,
        "seconds": round(found.seconds, 2),
    }
    if steady is not None:
        row["deterministic"] = steady.steady
    return row


def _difference(projection: "type[AnyProjection]", one: "Difference") -> dict[str, Any]:
    """Show the columns that differ, or that there is no row on one side."""
    stored, expected = one.stored, one.expected
    if stored is not None and expected is not None:
        names = [name for name in expected if not _same(stored[name], expected[name])]
        stored = {name: stored[name] for name in names}
        expected = {name: expected[name] for name in names}
    return {
        "name": projection.name,
        "version": projection.version,
        "table": one.table,
        "key": ", ".join(str(part) for part in one.key),
        "stored": _shown(stored),
        "expected": _shown(expected),
    }


def _same(stored: object, expected: object) -> bool:
    return stored == expected or repr(stored) == repr(expected)


def _shown(values: Mapping[str, object] | None) -> str:
    if values is None:
        return "no row"
    return ", ".join(f"{name} {value!s}" for name, value in values.items()) or "a row"


def _whole(one: "Difference") -> dict[str, object]:
    return {
        "table": one.table,
        "key": list(one.key),
        "stored": None if one.stored is None else dict(one.stored),
        "expected": None if one.expected is None else dict(one.expected),
    }


def _unsteady(found: "Determinism") -> dict[str, object]:
    one = found.unsteady
    return {
        "events": found.events,
        "impure": list(found.impure),
        "untried": found.untried,
        "seconds": round(found.seconds, 2),
        "first": None
        if one is None
        else {
            "trial": one.trial,
            "position": one.position,
            "event_type": one.event_type,
            "table": one.table,
            "key": list(one.key),
            "once": None if one.first is None else dict(one.first),
            "again": None if one.second is None else dict(one.second),
        },
    }


def _tell(invocation: Invocation, projection: "type[AnyProjection]", found: "Determinism") -> None:
    note = invocation.output.note
    one = found.unsteady
    if one is not None:
        at = "" if one.position is None else f" at position {one.position} ({one.event_type})"
        row = " ".join([one.table or "", *map(str, one.key)]).strip()
        note(
            f"{projection.name} gives another state when it is folded {one.trial}{at}:"
            f" {row}: {_shown(one.first)}, then {_shown(one.second)}"
        )
    for what in found.impure:
        note(f"{projection.name} asks {what}")
    if found.untried is not None:
        note(f"{projection.name} was not folded in another process: {found.untried}")


def _corruption(wrong: Sequence[_Wrong]) -> Exception:
    from datapatterns import CorruptionError  # noqa: PLC0415 -- help must not wait for it

    error = CorruptionError("not what the log says: " + ", ".join(one.name for one in wrong))
    for one in wrong:
        if one.unsteady:
            error.add_note(
                f"let the methods of {one.name} depend on the event and the row only, raise its"
                " version, then rebuild it"
            )
        else:
            error.add_note(f"to mend it: datapatterns projections rebuild {one.name}")
    return error
