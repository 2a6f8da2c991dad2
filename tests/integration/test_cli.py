"""What holds for every command: whom it works on, how it prints, how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from redis import Redis
from sqlalchemy import URL, create_engine, text

from datapatterns.errors import (
    ConflictError,
    CorruptionError,
    DataPatternsError,
    SettingsError,
    UnavailableError,
)
from datapatterns_cli import command_list
from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command
from tests.fixtures.commands import COMMAND, Run, environment_without_servers
from tests.fixtures.empty_database import shown

APP = """
from datapatterns import DataLayer

layer = DataLayer({url!r})
number = 7


def make():
    return DataLayer({url!r}, schema="made")
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module in the current folder that declares data layers."""
    name = f"app_{abs(hash(request.node.nodeid))}"
    url = "postgresql://ann:hidden@127.0.0.1:1/shop"
    if "database_url" in request.fixturenames:
        url = shown(request.getfixturevalue("database_url"))
    (tmp_path / f"{name}.py").write_text(APP.format(url=url))
    (tmp_path / f"{name}_broken.py").write_text("import nothing_like_this")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the command ``raise`` raises."""
    errors: list[BaseException] = []

    @click.command(cls=Command)
    def command() -> None:
        raise errors[0]

    monkeypatch.setattr("tests.integration.test_cli.extra", command, raising=False)
    listed = {**command_list.COMMANDS, "raise": ("tests.integration.test_cli:extra", "Fail.")}
    monkeypatch.setattr(command_list, "COMMANDS", listed)
    return errors


@click.command(cls=Command)
@pass_invocation
def probe(invocation: Invocation) -> None:
    """Say which databases a command without any is given."""
    layer = invocation.layer(or_embedded=True)
    with layer.engine.connect() as conn:
        count = conn.scalar(text(f"SELECT count(*) FROM {layer.schema}.library_migration"))  # noqa: S608
    layer.redis.set("a", "b")
    invocation.output.values({"migrations": count, "socket": "unix:" in repr(layer)})


def test_help_is_quick_because_it_loads_no_database_library(tmp_path: Path) -> None:
    loaded = "import sys, datapatterns_cli.main as m; m.main(['{}', '--help']); print({})"
    heavy = "{'sqlalchemy', 'redis', 'alembic', 'rich', 'psycopg'} & sys.modules.keys()"
    for command in ("--version", "migrate"):
        ran = subprocess.run(  # noqa: S603 -- our own command
            [sys.executable, "-c", loaded.format(command, heavy)],
            cwd=tmp_path,
            env=environment_without_servers(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.splitlines()[-1] == "set()"


def test_every_command_is_listed_loads_and_teaches(run: Run) -> None:
    listing = run("--help").out

    for name in command_list.COMMANDS:
        assert name in listing
        shown_help = run(name, "--help")
        assert shown_help.code == 0
        assert f"datapatterns {name}" in shown_help.out  # an example
        assert "--json" in shown_help.out
    assert run("--version").out.startswith("datapatterns ")
    assert run("nonsense").code == 2


@pytest.mark.postgres
@pytest.mark.redis
def test_servers_are_named_by_options_by_variables_and_by_an_app(
    run: Run, database_url: URL, redis_url: str, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_options = run("doctor", "--database-url", shown(database_url), "--redis-url", redis_url)
    by_app = run("--app", f"{app}:layer", "doctor", "--json")
    by_factory = run("migrate", "status", "--app", f"{app}:make", "--json")
    monkeypatch.setenv("DATAPATTERNS_APP", f"{app}:layer")
    by_variable = run("doctor", "--json")
    over_variable = run("doctor", "--json", "--redis-url", redis_url)

    assert by_options.code == 0, by_options
    assert "PostgreSQL" in by_options.out
    assert json.loads(by_app.out)["name"] == json.loads(by_variable.out)["name"] == "main"
    assert json.loads(by_factory.out)["schema"] == "made"
    assert json.loads(over_variable.out)["name"] == "redis"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--app", "{app}:nothing"], "nothing"),
        (["--app", "{app}:number"], "no DataLayer but int"),
        (["--app", "{app}"], "package.module:name"),
        (["--app", ".{app}:layer"], "package.module:name"),
        (["--app", "no.such.module:layer"], "no module 'no'"),
        (["--app", "{app}:layer", "--database-url", "postgresql://h/x"], "not both"),
        (["--app", "{app}:layer", "--schema", "shop"], "leave out --schema"),
        (["--schema", "no schema", "--database-url", "postgresql://h/x"], "no schema"),
        (["--database-url", "mysql://h/x"], "postgresql://user:password@host"),
        ([], "which database?"),
    ],
)
def test_a_mistake_in_naming_servers_is_told_in_one_line_with_advice(
    run: Run, app: str, arguments: list[str], advice: str
) -> None:
    ran = run("migrate", "status", *(argument.format(app=app) for argument in arguments))

    assert ran.code == 2
    assert advice in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("option", ["--database-url", "--app", "--redis-url", "--schema"])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_option_does_not_fall_back_to_another_database(
    run: Run, monkeypatch: pytest.MonkeyPatch, option: str, empty: str
) -> None:
    monkeypatch.setenv("DATAPATTERNS_DATABASE_URL", "postgresql://ann@127.0.0.1:1/shop")

    ran = run("migrate", "downgrade", "base", "--yes", option, empty)

    assert ran.code == 2
    assert f"'{option}': it is empty" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["migrate", "status", "--app", "no.such:layer", "--json"],
        ["demo", "--weeks", "0", "--json"],
        ["--json", "no-such-command"],
        ["migrate", "status", "--json"],
    ],
)
def test_wrong_usage_is_json_for_programs_too(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)

    told = json.loads(ran.err)
    assert (ran.code, told["exit_code"]) == (2, 2)
    assert told["message"]


def test_an_app_that_cannot_be_imported_is_told_from_one_that_is_not_there(
    run: Run, app: str
) -> None:
    ran = run("migrate", "status", "--app", f"{app}_broken:layer")

    assert ran.code == 1
    assert "No module named 'nothing_like_this'" in ran.err
    assert f"while importing {app}_broken" in ran.err


def test_a_server_that_is_away_is_named_without_its_password(run: Run, app: str) -> None:
    for arguments in (["--json"], ["--debug"], []):
        ran = run("migrate", "status", "--app", f"{app}:layer", *arguments)

        assert ran.code == 4
        assert "postgresql://ann@127.0.0.1:1/shop did not answer" in ran.err
        assert "hidden" not in ran.out + ran.err
        assert ("Traceback" in ran.err) == ("--debug" in arguments)


def test_a_redis_that_is_away_is_named_without_its_password(run: Run) -> None:
    ran = run("doctor", "--redis-url", "redis://:hidden@127.0.0.1:1/0")

    assert ran.code == 4
    assert "redis://127.0.0.1:1/0 did not answer" in ran.err
    assert "hidden" not in ran.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("colour", "choose another"), 2),
        (ConflictError("lost"), 3),
        (UnavailableError("away"), 4),
        (CorruptionError("torn"), 5),
        (DataPatternsError("new family"), 1),
        (ValueError("nobody thought of it"), 1),
    ],
)
def test_the_family_of_an_error_decides_the_exit_code(
    run: Run, raising: list[BaseException], error: Exception, code: int
) -> None:
    raising.append(error)

    for_people = run("raise")
    for_programs = run("--json", "raise")

    assert (for_people.code, for_programs.code) == (code, code)
    assert str(error) in for_people.err.splitlines()[0]
    assert "Traceback" not in for_people.err
    described = json.loads(for_programs.err)
    assert (described["error"], described["exit_code"]) == (type(error).__name__, code)
    assert run("raise", "--debug").err.startswith("Traceback")


@pytest.mark.postgres
def test_what_the_database_says_is_told_without_statement_and_values(
    run: Run, raising: list[BaseException], database_url: URL
) -> None:
    engine = create_engine(database_url)
    with engine.connect() as conn, pytest.raises(Exception) as caught:  # noqa: PT011 -- any
        conn.execute(text("SELECT CAST(:value AS int)"), {"value": "hidden\nhidden"})
    raising.append(caught.value)
    engine.dispose()

    ran = run("raise")

    assert ran.code == 1
    assert ran.err.startswith("Error: the database said: invalid input syntax for type integer")
    assert "SELECT" not in ran.err


@pytest.mark.redis
def test_what_redis_says_has_a_family_too(
    run: Run, raising: list[BaseException], redis_client: Redis
) -> None:
    redis_client.set("text", "a")
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- any
        redis_client.lpush("text", "b")
    raising.append(caught.value)

    assert "wrong kind of value" in run("raise").err


def test_ctrl_c_is_one_line_and_130(run: Run, raising: list[BaseException]) -> None:
    raising.append(KeyboardInterrupt())

    ran, for_programs = run("raise"), run("raise", "--json")

    assert ran.code == for_programs.code == 130
    assert ran.err.strip().startswith("Interrupted")
    assert len(ran.err.strip().splitlines()) == 1
    described = json.loads(for_programs.err)
    assert (described["error"], described["exit_code"]) == ("Interrupted", 130)


def test_without_servers_a_command_that_may_starts_its_own_and_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {**command_list.COMMANDS, "probe": (f"{__name__}:probe", "Probe.")}
    monkeypatch.setattr(command_list, "COMMANDS", listed)

    ran = run("probe", "--json", "--schema", "shop")

    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["migrations"] > 0
    assert len(ran.err.splitlines()) == 1
    assert "gone when this ends" in ran.err


def test_the_shell_completes_commands_and_options(tmp_path: Path) -> None:
    def complete(words: str) -> str:
        return subprocess.run(  # noqa: S603 -- our own command
            [*COMMAND],
            cwd=tmp_path,
            env=environment_without_servers()
            | {
                "_DATAPATTERNS_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split()) - 1),
            },
            capture_output=True,
            text=True,
            check=False,
        ).stdout

    assert "plain,migrate" in complete("datapatterns mig")
    assert "plain,upgrade" in complete("datapatterns migrate up")
    assert "plain,--dry-run" in complete("datapatterns migrate upgrade --dr")
