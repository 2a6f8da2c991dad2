"""The demo from beginning to end, and what happens when it does not get there."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis import Redis
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.exc import ProgrammingError

from datapatterns import ConfigurationError, ConflictError
from datapatterns.connecting import open_engine
from datapatterns.embedded import EmbeddedServers
from datapatterns.embedded.processes import servers_in
from datapatterns_cli.main import main
from datapatterns_grocer import story
from datapatterns_grocer.databases import MAIN_NAME, SHARD_NAMES, demo_databases
from datapatterns_grocer.screen import Screen
from datapatterns_grocer.stage import Stage

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

NAMES = (MAIN_NAME, *SHARD_NAMES)


def databases_on(server: URL) -> set[str]:
    engine = create_engine(server)
    with engine.connect() as conn:
        found = conn.scalars(text("SELECT datname FROM pg_database")).all()
    engine.dispose()
    return set(found)


@pytest.fixture
def own_server() -> Iterator[URL]:
    """A server that no other test's demo uses."""
    with EmbeddedServers(durable=False) as servers:
        yield servers.postgres().url


def test_every_figure_of_a_week_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["demo", "--weeks", "1", "--json"])

    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["is_exact"] is True
    assert {check["what"].split(":")[0] for check in report["checks"]} >= {
        "shards",
        "events",
        "read model in PostgreSQL",
        "read model in Redis",
        "materialized view",
        "index table",
        "index over shards",
        "cache",
    }
    assert all(check["rows"] > 0 for check in report["checks"])


def test_a_figure_that_is_a_cent_off_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def steal_a_cent(stage: Stage) -> None:
        with stage.layer.engine.begin() as conn:
            conn.execute(
                text(
                    "UPDATE product_sales SET cents = cents - 1"
                    " WHERE product_id = (SELECT max(product_id) FROM product_sales)"
                )
            )

    thief = SimpleNamespace(__name__="a.thief", play=steal_a_cent, verify=lambda _stage: [])
    monkeypatch.setattr(story, "CHAPTERS", (*story.CHAPTERS, thief))

    code = main(["demo", "--weeks", "1"])

    printed = capsys.readouterr()
    assert code == 5
    assert "read model in PostgreSQL" in printed.err
    assert "DIFFERS" in printed.out


def test_on_servers_of_the_user_it_makes_databases_of_its_own_and_drops_them(
    own_server: URL, redis_url: str, redis_client: Redis
) -> None:
    redis_client.set("somebody's", "own")

    outcome = story.tell(
        weeks=1,
        screen=Screen(quiet=True),
        database_url=own_server.render_as_string(hide_password=False),
        redis_url=redis_url,
    )

    assert outcome.is_exact
    assert not databases_on(own_server) & set(NAMES)
    assert redis_client.keys() == [b"somebody's"]


def test_a_database_of_that_name_that_the_demo_did_not_make_is_left_alone(own_server: URL) -> None:
    engine = create_engine(own_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.execute(text(f"CREATE DATABASE {MAIN_NAME}"))
    engine.dispose()

    with (
        pytest.raises(ConfigurationError, match="did not make"),
        demo_databases(own_server, NAMES, keep=False),
    ):
        pytest.fail("the demo went on")

    assert MAIN_NAME in databases_on(own_server)


def test_what_an_interrupted_demo_left_is_made_anew(own_server: URL) -> None:
    with demo_databases(own_server, NAMES, keep=True) as urls:
        engine = create_engine(urls[0])
        with engine.begin() as conn:
            conn.execute(text("CREATE TABLE left_behind ()"))
        engine.dispose()

    with demo_databases(own_server, NAMES, keep=False) as urls:
        engine = create_engine(urls[0])
        with engine.connect() as conn:
            assert conn.scalar(text("SELECT to_regclass('left_behind')")) is None
        engine.dispose()

    assert not databases_on(own_server) & set(NAMES)


def test_a_second_demo_on_one_server_is_told_to_wait(own_server: URL) -> None:
    with (
        demo_databases(own_server, NAMES, keep=False),
        pytest.raises(ConflictError, match="another demo"),
        demo_databases(own_server, NAMES, keep=False),
    ):
        pytest.fail("two demos at once")


def test_a_second_demo_through_another_database_of_the_server_is_told_to_wait(
    own_server: URL,
) -> None:
    with demo_databases(own_server, NAMES, keep=False) as urls:
        with (
            pytest.raises(ConflictError, match="another demo"),
            demo_databases(own_server.set(database="template1"), NAMES, keep=False),
        ):
            pytest.fail("two demos at once")
        assert set(NAMES) <= databases_on(urls[0])


def test_a_demo_that_was_killed_before_it_could_sign_a_database_runs_again(
    own_server: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("datapatterns_grocer.databases._MARK", "it's a syntax error")
        patch.setattr("datapatterns_grocer.databases._drop", lambda _conn, _name: None)
        with pytest.raises(ProgrammingError), demo_databases(own_server, NAMES, keep=False):
            pytest.fail("the demo went on")
    assert MAIN_NAME in databases_on(own_server)

    with demo_databases(own_server, NAMES, keep=False) as urls:
        engine = create_engine(urls[0])
        engine.connect().close()
        engine.dispose()

    assert not databases_on(own_server) & set(NAMES)


def test_ctrl_c_during_a_statement_still_drops_the_databases(
    own_server: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("COMMENT ON"):
            raise KeyboardInterrupt

    def interruptible(url: URL) -> Engine:
        engine = open_engine(url)
        event.listen(engine, "after_cursor_execute", interrupt)
        return engine

    monkeypatch.setattr("datapatterns_grocer.databases.open_engine", interruptible)

    with pytest.raises(KeyboardInterrupt), demo_databases(own_server, NAMES, keep=False):
        pytest.fail("the demo went on")

    assert not databases_on(own_server) & set(NAMES)


@pytest.mark.parametrize(
    ("url", "code", "advice"),
    [
        ("postgresql://ann:hid@den@127.0.0.1:1/x", 2, "percent-encoded"),
        ("mysql://ann:hidden@127.0.0.1:1/x", 2, "write postgresql://"),
        ("ann:hidden@127.0.0.1/x", 2, "write postgresql://"),
        ("postgresql://ann:hidden@127.0.0.1:1/x", 4, "postgresql://ann@127.0.0.1:1/x did not"),
    ],
)
def test_a_wrong_url_is_told_with_advice_and_without_its_password(
    capsys: pytest.CaptureFixture[str], url: str, code: int, advice: str
) -> None:
    assert main(["demo", "--database-url", url]) == code

    printed = capsys.readouterr()
    assert advice in printed.err
    assert "hid" not in printed.err
    assert "den@" not in printed.err


def test_a_server_that_never_answers_does_not_hold_the_demo_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert main(["demo", "--database-url", f"postgresql://ann@127.0.0.1:{port}/x"]) == 4

    assert "did not answer" in capsys.readouterr().err


@pytest.mark.chaos
def test_ctrl_c_leaves_no_server_and_says_one_line(playground: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "datapatterns_cli", "demo", "--weeks", "4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(playground)},
    )
    assert process.stdout
    for line in process.stdout:
        if "Event sourcing" in line:
            break
    process.send_signal(signal.SIGINT)

    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert err.strip().splitlines()[-1].startswith("Interrupted")
    assert "Traceback" not in err
    assert not servers_in(playground)
