"""A release whose newest revision fails, and the next one, which mends it."""

import shutil
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, inspect

import datapatterns_migrations
from datapatterns.sql.migration_status import revisions
from tests.fixtures.commands import ended, start
from tests.fixtures.empty_database import shown

pytestmark = pytest.mark.postgres
FAILING = """
from datapatterns_migrations.placement import run

revision = "dp9999"
down_revision = "{newest}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("CREATE TABLE {{schema}}.half (n int); {fault}")


def downgrade() -> None:
    run("DROP TABLE {{schema}}.half")
"""


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder with a copy of the migrations, to be imported instead of ours."""
    source = Path(datapatterns_migrations.__file__).parent
    shutil.copytree(source, tmp_path / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def add_revision(release: Path, *, fault: str) -> None:
    path = release / "datapatterns_migrations/versions/dp9999_half.py"
    path.write_text(FAILING.format(newest=revisions()[-1].revision, fault=fault))


def test_a_migration_that_fails_half_way_leaves_nothing_and_can_be_run_again(
    empty_url: URL, release: Path
) -> None:
    at = ("--database-url", shown(empty_url))
    add_revision(release, fault="SELECT 1 / 0")
    failed = ended(start("migrate", "upgrade", *at, cwd=release))
    engine = create_engine(empty_url)
    left = inspect(engine).get_schema_names()
    add_revision(release, fault="")
    mended = ended(start("migrate", "upgrade", *at, cwd=release))

    assert failed.code == 1
    assert failed.err.splitlines()[0] == "Error: the database said: division by zero"
    assert "in database main" in failed.err
    assert "datapatterns" not in left
    assert mended.code == 0, mended.err
    assert inspect(engine).has_table("half", schema="datapatterns")
    engine.dispose()


def test_an_older_release_leaves_the_tables_of_a_newer_one_alone(
    empty_url: URL, release: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    at = ("--database-url", shown(empty_url))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    add_revision(release, fault="")
    newer = ended(start("migrate", "upgrade", *at, cwd=release))
    older = [
        ended(start("migrate", *command, *at, cwd=elsewhere))
        for command in (["upgrade"], ["check"], ["downgrade", "base", "--yes"])
    ]

    assert newer.code == 0, newer.err
    for refused in older:
        assert refused.code == 2
        assert "upgrade the package" in refused.err
    assert ended(start("migrate", "check", *at, cwd=release)).code == 0
