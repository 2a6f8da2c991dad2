"""`datapatterns verify`: is all that is derived what its source says?"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from datapatterns_cli.amounts import Amount
from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shards_cluster import cluster_too_option, load_cluster
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns.overview import Claim, Proof

Known = dict[tuple[str, str, str], dict[str, Any]]

_PATTERNS = (
    "broadcast table",
    "cache",
    "event chain",
    "index",
    "projection",
    "sharded table",
    "view",
)


@click.command(cls=Command)
@click.argument("patterns", nargs=-1, type=click.Choice(_PATTERNS), metavar="[PATTERN]...")
@click.option("--sample", type=Amount(), help="Only so many rows of each, as 0.05, 5% or 10000.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what was found there, too, a line of JSON each, as soon as it is known.",
)
@click.option(
    "--continue",
    "go_on",
    is_flag=True,
    help="Leave out what the report says is right; go on where an earlier run has ended.",
)
@cluster_too_option
@pass_invocation
def verify(
    invocation: Invocation,
    *,
    patterns: tuple[str, ...],
    sample: float | None,
    report: Path | None,
    go_on: bool,
    where: str | None,
) -> None:
    """Compare all that an application derives with its source, or these patterns of it.

    PATTERN is 'broadcast table', cache, 'event chain', index, projection, 'sharded table' or view.
    Exits with 5 if something differs, with what mends it; with 4 if something could not be asked.
    All goes on meanwhile. What is not whole yet is left out, and told.

    \b
      datapatterns verify --app shop.data:layer
      datapatterns verify view projection --sample 5% --json
      datapatterns verify --report proofs.jsonl --continue
    """  # noqa: D301
    if go_on and report is None:
        raise click.UsageError("--continue goes on with a report: name it, --report FILE")
    layer = invocation.layer()
    known = _known(report) if go_on and report is not None else {}

    def is_wanted(claim: "Claim | Proof") -> bool:
        if patterns and claim.pattern not in (*patterns, "server"):
            return False
        return (claim.pattern, claim.name, claim.database) not in known

    rows: list[dict[str, Any]] = list(known.values())
    with ExitStack() as stack:
        clusters = [] if where is None else [stack.enter_context(load_cluster(where))]
        record = stack.enter_context(_recording(report, go_on=go_on))
        advance = stack.enter_context(invocation.output.progress("verifying", None))
        for proof in layer.verify(sample=sample, wanted=is_wanted, clusters=clusters):
            rows.append(asdict(proof) | {"seconds": round(proof.seconds, 2)})
            if record is not None:
                record.write(json.dumps(rows[-1], default=str) + "\n")
                record.flush()
            advance(1)
    _tell(invocation, rows)


def _known(report: Path) -> Known:
    """Return what an earlier run has found right; the last line may have been cut off."""
    if not report.exists():
        return {}
    known: Known = {}
    for line in report.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            about = row["pattern"], row["name"], row["database"]
            verdict = row["verdict"]
        except (ValueError, TypeError, KeyError):
            continue
        known.pop(about, None)
        if verdict == "right":
            known[about] = row
    return known


@contextmanager
def _recording(report: Path | None, *, go_on: bool) -> Iterator[IO[str] | None]:
    if report is None:
        yield None
        return
    with report.open("a" if go_on else "w", encoding="utf-8") as record:
        if go_on and report.stat().st_size:
            record.write("\n")  # behind a line that was cut off
        yield record


def _tell(invocation: Invocation, rows: Sequence[dict[str, Any]]) -> None:
    output = invocation.output
    shown = rows if output.as_json else [_short(row) for row in rows]
    output.table(shown, empty="nothing is declared that could be verified")
    for row in rows if not output.as_json else ():
        if row["verdict"] in ("left out", "unknown"):
            output.note(f"{row['pattern']} {row['name']} is {row['verdict']}: {row['reason']}")
    if wrong := [row for row in rows if row["verdict"] == "wrong"]:
        from datapatterns import CorruptionError  # noqa: PLC0415 -- help must not wait for it

        error: Exception = CorruptionError(
            "not what its source says: "
            + ", ".join(f"{row['pattern']} {row['name']}" for row in wrong)
        )
        for row in wrong:
            error.add_note(f"{row['name']}: {row['reason']}; to mend it: {row['advice']}")
        raise error
    if unknown := [row for row in rows if row["verdict"] == "unknown"]:
        from datapatterns import UnavailableError  # noqa: PLC0415 -- help must not wait for it

        names = ", ".join(f"{row['pattern']} {row['name']}" for row in unknown)
        raise UnavailableError(f"could not be compared: {names}")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    names = ("pattern", "name", "database", "verdict", "compared", "differing", "seconds")
    return {name: str(row[name]) if name == "verdict" else row[name] for name in names}
