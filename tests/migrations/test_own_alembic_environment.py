"""An application's own Alembic environment migrates our tables, and ours keeps out of its way."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, inspect

from datapatterns.sql.migration_status import revisions
from tests.fixtures.commands import CHECKOUT, Ran, Run, environment_without_servers
from tests.fixtures.empty_database import shown

pytestmark = pytest.mark.postgres
NEWEST = revisions()[-1].revision


def test_the_page_about_it_names_the_newest_revision() -> None:
    page = CHECKOUT / "docs" / "how-to" / "include-our-migrations-in-yours.md"

    assert set(re.findall(r"dp\d{4}", page.read_text())) == {NEWEST}


class Shop:
    """A copy of the example project, with a database."""

    def __init__(self, folder: Path, url: URL) -> None:
        self._folder = folder
        self.url = url
        self.at = ("--database-url", shown(url), "--schema", "patterns")

    def alembic(self, *arguments: str) -> Ran:
        ran = subprocess.run(  # noqa: S603 -- our own command
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self._folder,
            env=environment_without_servers() | {"DATABASE_URL": shown(self.url)},
            capture_output=True,
            text=True,
            check=False,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture
def shop(tmp_path: Path, empty_url: URL) -> Shop:
    folder = tmp_path / "the shop"
    shutil.copytree(
        CHECKOUT / "examples/own_alembic_environment",
        folder,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return Shop(folder, empty_url)


def test_one_command_migrates_both_and_ours_recognises_what_it_did(shop: Shop, run: Run) -> None:
    upgraded = shop.alembic("upgrade", "heads")
    again = shop.alembic("upgrade", "heads")
    differences = shop.alembic("check")
    status = json.loads(run("migrate", "status", "--json", *shop.at).out)
    engine = create_engine(shop.url)

    assert (upgraded.code, again.code, differences.code) == (0, 0, 0), upgraded.err
    assert inspect(engine).has_table("products")
    assert (status["revision"], status["state"]) == (NEWEST, "current")
    assert status["counted_in"] == "public.alembic_version"
    assert run("migrate", "check", *shop.at).code == 0
    engine.dispose()


def test_ours_does_not_migrate_what_theirs_counts(shop: Shop, run: Run) -> None:
    shop.alembic("upgrade", "heads")

    for command in (["upgrade"], ["downgrade", "base", "--yes"], ["upgrade", "--dry-run"]):
        refused = run("migrate", *command, *shop.at)

        assert refused.code == 2
        assert "public.alembic_version" in refused.err
    assert run("migrate", "check", *shop.at).code == 0


def test_theirs_goes_down_too(shop: Shop, run: Run) -> None:
    shop.alembic("upgrade", "heads")
    shop.alembic("downgrade", "shop@base")
    partly = shop.alembic("downgrade", "datapatterns@dp0003")
    part = json.loads(run("migrate", "status", "--json", *shop.at).out)
    wholly = shop.alembic("downgrade", "base")
    none = json.loads(run("migrate", "status", "--json", *shop.at).out)

    assert (partly.code, wholly.code) == (0, 0), partly.err + wholly.err
    assert (part["revision"], part["state"]) == ("dp0003", "behind")
    assert (none["revision"], none["state"]) == (None, "behind")


def test_tables_that_ours_migrated_are_taken_over_by_a_stamp(shop: Shop, run: Run) -> None:
    run("migrate", "upgrade", "--revision", "dp0003", *shop.at)
    refused = shop.alembic("upgrade", "heads")
    shop.alembic("stamp", "dp0003")
    taken_over = shop.alembic("upgrade", "heads")
    status = json.loads(run("migrate", "status", "--json", *shop.at).out)

    assert refused.code != 0
    assert "alembic stamp dp0003" in refused.out
    assert "Traceback" not in refused.err
    assert taken_over.code == 0, taken_over.err
    assert (status["state"], status["counted_in"]) == ("current", "public.alembic_version")
    assert run("migrate", "check", *shop.at).code == 0


def test_their_printed_sql_makes_the_same_tables(shop: Shop, run: Run) -> None:
    printed = shop.alembic("upgrade", "heads", "--sql")
    engine = create_engine(shop.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.exec_driver_sql(printed.out, execution_options={"no_parameters": True})
    engine.dispose()

    assert run("migrate", "check", *shop.at).code == 0
