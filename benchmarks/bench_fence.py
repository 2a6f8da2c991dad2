"""The fence in front of positions, beside a bare sequence and beside a table lock, in SQL alone."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import URL, Engine, create_engine, text

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.embedded.accounts import server_account
from datapatterns.embedded.installation import postgres_programs
from datapatterns.migrations import Migrations

WORK_SECONDS = 0.002
CASES = ((1, False), (16, False), (16, True))
"""How many writers there are, and whether they work after the append, before COMMIT."""

OPERATIONS = 3_200
"""By all writers, in a round."""

INSTEAD_OF_THE_FENCE = {
    "bare": "",
    # As others do it. On a table of its own: within the INSERT, the table's own lock would make
    # deadlocks of it.
    "locked": "LOCK TABLE public.one_writer IN EXCLUSIVE MODE;",
}

_APPEND = """
SELECT * FROM datapatterns.append_events(
    '', 'basket', 'till-' || :client_id, NULL, NULL, 'item.scanned 1', NULL,
    gen_random_uuid()::text,
    '{"product_id": 819312, "quantity": 1, "cents": 149, "memo": "ooooooooooooooooooooooo"}', NULL);
"""
_WITH_WORK = f"BEGIN;{_APPEND}SELECT pg_sleep({WORK_SECONDS});\nCOMMIT;\n"


@contextmanager
def claim(case: tuple[int, bool]) -> Iterator[Claim]:
    """The same function in three databases; in two of them, its fence is replaced."""
    writers, works = case
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        for name, instead in INSTEAD_OF_THE_FENCE.items():
            _create_variant(layer.engine, name, instead)
        script = Path(stack.enter_context(TemporaryDirectory())) / "append.sql"
        script.write_text(_WITH_WORK if works else _APPEND)
        fenced, bare, locked = (
            _clients(layer.engine.url.set(database=name), script, writers)
            for name in ("postgres", *INSTEAD_OF_THE_FENCE)
        )
        title = f"append in SQL, {writers} writers"
        yield Claim(
            title + (f", {1_000 * WORK_SECONDS:g} ms of work before COMMIT" if works else ""),
            "transactions",
            [
                Contestant("fence", "ours", fenced),
                Contestant("bare sequence, skips events", "limit", bare),
                Contestant("table lock until COMMIT", "rival", locked),
            ],
        )


def _create_variant(main: Engine, name: str, instead: str) -> None:
    with main.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text(f"CREATE DATABASE {name}"))
    url = main.url.set(database=name)
    Migrations({name: url}).upgrade()
    engine = create_engine(url)
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE one_writer ()"))
        conn.execute(
            text(
                "CREATE OR REPLACE FUNCTION datapatterns.raise_fence_before_insert()"
                f" RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {instead} RETURN NULL; END $$"
            )
        )
    engine.dispose()


def _clients(url: URL, script: Path, writers: int) -> Callable[[], int]:
    program = postgres_programs(server_account()).programs / "pgbench"
    each = max(1, OPERATIONS // writers)
    command: list[str | Path] = [program, "--no-vacuum", "--protocol=prepared"]
    command += [f"--client={writers}", f"--jobs={min(writers, 2)}", f"--transactions={each}"]
    command += [f"--file={script}", f"--host={url.query['host']}", f"--port={url.query['port']}"]
    command += [f"--username={url.username}", str(url.database)]

    def run() -> int:
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 -- ours
        return each * writers

    return run
