"""The plugin in a project of its own, as pytest finds it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.fixtures.owners import CHECKOUT

SEATS = CHECKOUT / "examples/find_a_race/test_seats.py"


@pytest.fixture
def project(
    tmp_path: Path, server_url: URL, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with the example, which uses the servers of this run."""
    shutil.copy(SEATS, tmp_path)
    monkeypatch.setenv("DATABASE_URL", server_url.render_as_string(hide_password=False))
    monkeypatch.setenv("REDIS_URL", redis_url)
    for name in [name for name in os.environ if name.startswith(("PYTEST", "COV"))]:
        monkeypatch.delenv(name)
    return tmp_path


def run(project: Path, *options: str) -> tuple[int, str]:
    done = subprocess.run(  # noqa: S603 -- our own program
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.postgres
def test_a_race_is_found_by_a_worker_told_counted_and_replayed(project: Path) -> None:
    code, told = run(project, "-n", "2")

    assert (code, "1 failed, 1 passed" in told) == (1, True), told
    assert "one seat, sold twice" in told
    assert re.search(r"2 explorations, 1 of them complete: \d+ schedules in .* a second", told), (
        told
    )
    token = re.search(r"--datapatterns-replay=(\S+)", told)
    assert token

    code, told = run(project, token[0], "-k", "without_lock")

    assert code == 1
    assert "one seat, sold twice" in told
    assert token[0] in told
    assert "datapatterns: 1 explorations, 0 of them complete: 1 schedules" in told


@pytest.mark.postgres
def test_the_effort_can_be_set_from_outside(project: Path) -> None:
    code, told = run(project, "-k", "without_lock", "--datapatterns-preemptions=0")

    # Alice first or Bob first, and nobody in between: the race is not found.
    assert code == 0
    assert "1 of them complete: 2 schedules" in told


@pytest.mark.postgres
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_replay_of_nothing_fails(project: Path, workers: str) -> None:
    code, told = run(project, "-n", workers, "--datapatterns-replay=alice.carol*3.alice*2")

    assert (code, "2 passed" in told) == (pytest.ExitCode.TESTS_FAILED, True), told
    assert "nothing was replayed" in told


@pytest.mark.parametrize(
    "option",
    [
        "--datapatterns-preemptions=-1",
        "--datapatterns-examples=x",
        "--datapatterns-examples=0",
        "--datapatterns-replay=alice!bob",
    ],
)
def test_numbers_and_tokens_that_are_none_are_refused(project: Path, option: str) -> None:
    code, told = run(project, option)

    assert code == pytest.ExitCode.USAGE_ERROR
    assert option.partition("=")[0] in told


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    program = (
        "import sys, datapatterns_pytest\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'datapatterns', 'hypothesis', 'psycopg', 'redis', 'sqlalchemy'}))"
    )

    done = subprocess.run(  # noqa: S603 -- our own program
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
