"""What becomes of a command whose stdout or stderr is closed, full, or read by nobody any more."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy import Engine

from tests.fixtures.commands import (
    COMMAND,
    Ran,
    Run,
    environment_without_servers,
    start,
)
from tests.fixtures.doors import append, opened

pytestmark = pytest.mark.postgres

FULL = Path("/dev/full")


@contextmanager
def unread() -> Iterator[IO[str]]:
    """Yield what nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as file:
        yield file


def run_with(*arguments: str, stdout: IO[str] | int, stderr: IO[str] | int) -> Ran:
    ran = subprocess.run(  # noqa: S603 -- our own command
        [*COMMAND, *arguments],
        env=environment_without_servers(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout or "", ran.stderr or "")


def test_a_reader_who_leaves_ends_the_tail_and_the_export(
    engine: Engine, at: tuple[str, str], tmp_path: Path
) -> None:
    append(engine, "1", *[opened("x" * 200) for _ in range(2_000)])
    for command in (("tail", "--after", "0"), ("export", "-")):
        process = start("events", *command, *at, cwd=tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None

        assert process.wait(60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()


@pytest.mark.parametrize(
    "command",
    [
        ("events", "stream", "door", "1"),
        ("events", "stream", "door", "1", "--json"),
        ("events", "tail", "--after", "0", "--once"),
        ("events", "export", "-"),
        ("migrate", "sql"),
        ("events", "--help"),
        ("--version",),
    ],
)
def test_a_reader_who_left_is_no_error(
    engine: Engine, at: tuple[str, str], command: tuple[str, ...]
) -> None:
    append(engine, "1", opened())
    with unread() as stdout:
        ran = run_with(*command, *at, stdout=stdout, stderr=subprocess.PIPE)

    assert (ran.code, ran.err) == (141, "")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is full")
@pytest.mark.parametrize("command", [("--version",), ("events", "stream", "door", "1")])
def test_a_full_disk_is_named(
    engine: Engine, at: tuple[str, str], command: tuple[str, ...]
) -> None:
    append(engine, "1", opened())
    with FULL.open("w") as stdout:
        ran = run_with(*command, *at, stdout=stdout, stderr=subprocess.PIPE)

    assert ran.code == 2
    assert ran.err.startswith("Error: No space left on device\n")
    assert len(ran.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("events", "show", "99"), 2),  # wrong usage
        (("events", "show", "99", "--json"), 2),
        (("events", "tail", "--after", "99", "--once"), 5),
    ],
)
def test_an_error_that_nobody_reads_still_has_its_exit_code(
    engine: Engine, at: tuple[str, str], command: tuple[str, ...], code: int
) -> None:
    append(engine, "1", opened())
    with unread() as stderr:
        assert run_with(*command, *at, stdout=subprocess.PIPE, stderr=stderr) == Ran(code, "", "")


def test_what_a_file_says_does_not_steer_the_terminal(
    run: Run, at: tuple[str, str], tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    header = '{"format":"datapatterns.events","format_version":1}\n'
    event = '{"category":"door","key":"a\\u0007\\u001b[2J","type":"t","data":{},"at":"%s"}\n'
    lines.write_text(header + event % "2026-01-02T00:00:00Z" + event % "2026-01-01T00:00:00Z")

    ran = run("events", "import", str(lines), "--source", "s", *at)

    assert (ran.code, "goes back in time" in ran.err) == (2, True)
    assert r"door-a\x07" in ran.err
    assert not set("\x1b\x07") & set(ran.err)


@pytest.mark.parametrize(
    ("command", "closed", "said"),
    [
        (("export", "-"), "1>&-", "stdout is closed"),
        (("tail", "--once"), "1>&-", "stdout is closed"),
        (("import", "-"), "0<&-", "it is no header"),
        (("import", "-"), "2>&-", ""),
    ],
)
def test_streams_that_are_closed_are_no_crash(
    at: tuple[str, str], command: tuple[str, ...], closed: str, said: str
) -> None:
    ran = subprocess.run(  # noqa: S603 -- our own command
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "events", *command, *at],
        env=environment_without_servers(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, said in ran.stderr, "Traceback" in ran.stderr) == (2, True, False), ran
