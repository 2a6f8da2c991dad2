"""What every command promises: a dry run changes nothing, --json prints JSON whatever happens."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from sqlalchemy import URL, Engine, create_engine, func, literal_column, select, table, text

from datapatterns.event_sourcing import ANY, Archive, StreamId
from datapatterns_cli.main import cli
from tests.fixtures.commands import Ran, Run
from tests.fixtures.doors import append, declare_anew, opened, store
from tests.fixtures.empty_database import CreateDatabase, shown

pytestmark = pytest.mark.postgres

APP = """
from dataclasses import dataclass
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns import DataLayer
from datapatterns.cqrs import Projection, on
from datapatterns.event_sourcing import Decider, event, every


@event("door.opened")
@dataclass(frozen=True)
class Opened:
    by: str


def count(state: int, e: Opened) -> int:
    return state + 1


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    name: Mapped[str] = mapped_column(primary_key=True)


class People(Projection, into=Person, version=1):
    @on(Opened, key=lambda e, _: e.by)
    def _(self, row, e, meta):
        pass


door = Decider("door", 0, lambda command, state: [], count, snapshot=every(1))
layer = DataLayer({url!r}, projections=[People])
"""
STREAM = ("door", "1")
OF = ("--of", "{module}:door")
WORDS = {  # what follows each command, in the situation that `busy` makes
    "doctor": (),
    "events archive move": (),
    "events archive restore": STREAM,
    "events archive stop": ("door", "2"),
    "events blockers": (),
    "events check": (),
    "events export": ("{folder}/new.jsonl",),
    "events forget": ("4711", "--yes"),
    "events import": ("{folder}/lines", "--source", "s"),
    "events import-eventsourcing": ("--from-url", "{old}"),
    "events seal": (),
    "events show": ("1",),
    "events snapshot drop": STREAM,
    "events snapshot list": STREAM,
    "events snapshot purge": (),
    "events snapshot take": (*STREAM, *OF),
    "events stream": STREAM,
    "events tail": ("--after", "0", "--once"),
    "events verify-chain": (),
    "migrate check": (),
    "migrate downgrade": ("base", "--yes"),
    "migrate sql": (),
    "migrate status": (),
    "migrate upgrade": (),
    "projections discard": ("people", "--key-digest", "ab", "--yes"),
    "projections parked": (),
    "projections retry": ("people",),
    "projections skipped": (),
    "projections status": (),
    "projections verify": (),
    "views explain": (),
    "views list": (),
    "verify": (),
}
ELSEWHERE = {  # command -> why it has tests of its own
    "cache audit": "it needs a cache",
    "cache invalidate": "it needs Redis",
    "cache relay": "it needs Redis",
    "cache stats": "it needs Redis",
    "indexes backfill": "it needs an index",
    "indexes conflicts": "it needs an index",
    "indexes explain": "it needs an index",
    "indexes lag": "it needs an index",
    "indexes list": "it needs an index",
    "indexes repair": "it needs an index",
    "indexes retry": "it needs an index",
    "indexes sweep": "it needs an index",
    "indexes verify": "it needs an index",
    "shards assign": "it needs shards",
    "shards broadcast repair": "it needs shards",
    "shards broadcast verify": "it needs shards",
    "shards references": "it needs shards",
    "shards hot-keys": "it needs shards",
    "shards bootstrap": "it needs shards",
    "shards check-citus": "it needs shards",
    "shards citus-ddl": "it needs shards",
    "shards downgrade": "it needs shards",
    "shards lint": "it needs shards",
    "shards list": "it needs shards",
    "shards migrate": "it needs shards",
    "shards merge": "it needs shards",
    "shards pin": "it needs shards",
    "shards plan": "it needs shards",
    "shards recover": "it needs shards",
    "shards route": "it needs shards",
    "shards split": "it needs shards",
    "shards stats": "it needs shards",
    "shards status": "it needs shards",
    "shards unpin": "it needs shards",
    "demo": "it has servers",
    "status": "it ends with 1 where something needs somebody",
    "worker": "it does not end",
    "projections merge": "it needs segments",
    "projections promote": "it needs a version that was built",
    "projections rebuild": "it needs a read model",
    "projections retire": "it needs a version that nobody reads",
    "projections rollback": "it needs a version that was read before",
    "projections run": "it needs a read model",
    "projections split": "it needs a read model",
    "views populate": "it needs a view",
    "views rebuild": "it needs a view",
    "views refresh": "it needs a view",
    "views verify": "it needs a view",
}
MOVING = ("abort", "add", "drain", "forget", "move", "moves", "rebalance", "remove", "resume")
ELSEWHERE |= {f"shards {name}": "it needs shards" for name in MOVING}
LINES = (
    b'{"format":"datapatterns.events","format_version":1}\n'
    b'{"category":"door","key":"9","type":"door.opened","data":{"by":"bob"}}\n'
)


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        elif command is not None:
            yield " ".join([*above, name]), command


ALL = dict(commands(cli))
WITH_DRY_RUN = [
    name
    for name, one in ALL.items()
    if "dry_run" in [param.name for param in one.params] and name not in ELSEWHERE
]


@pytest.fixture
def module(database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"promises_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APP.format(url=shown(database_url)))
    (tmp_path / "lines").write_bytes(LINES)
    declare_anew(monkeypatch, tmp_path)
    return name


@pytest.fixture
def old(new_empty_url: CreateDatabase) -> URL:
    """A database of the library `eventsourcing`, with one event."""
    url = new_empty_url()
    engine = create_engine(url)
    with engine.begin() as conn:
        conn.execute(
            text(
                "CREATE TABLE stored_events (originator_id uuid, originator_version bigint,"
                " topic text, state bytea, notification_id bigserial)"
            )
        )
        conn.execute(
            text(
                "INSERT INTO stored_events (originator_id, originator_version, topic, state)"
                " VALUES (gen_random_uuid(), 1, 'm:Dog.Fed', convert_to(:state, 'UTF8'))"
            ),
            {"state": '{"timestamp": "2026-01-01T00:00:00+00:00"}'},
        )
    engine.dispose()
    return url


@pytest.fixture
def words(module: str, old: URL, tmp_path: Path) -> dict[str, list[str]]:
    """Each command with what follows it."""
    values = {"module": module, "folder": tmp_path, "old": shown(old)}
    return {
        name: [*name.split(), *(word.format(**values) for word in following)]
        for name, following in WORDS.items()
    }


def make_busy(run: Run, engine: Engine, app: tuple[str, ...]) -> None:
    """Leave work for every command: a stopped stream, snapshots of two releases, open seals."""
    append(engine, "1", opened(), opened())
    append(engine, "2", opened())
    module = app[1].partition(":")[0]
    of = ("--of", f"{module}:door")
    assert run("events", "snapshot", "take", *STREAM, *of, *app).code == 0
    with engine.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO datapatterns.snapshot"
                " (stream_id, aggregate, fingerprint, version, position, at, state)"
                " SELECT stream_id, aggregate, 'old', version, position, at, state"
                " FROM datapatterns.snapshot"
            )
        )
        store.append(conn, StreamId(*STREAM), [opened()], expected_version=ANY)
        Archive(store).stop(conn, StreamId(*STREAM))


def contents(engine: Engine) -> dict[str, list[str]]:
    """Return all rows of all tables of all schemas, as text."""
    found = {}
    with engine.connect() as conn:
        names = text(
            "SELECT schemaname, tablename FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        for schema, name in conn.execute(names).all():
            whole = table(name, schema=schema).alias("whole")
            rows = select(func.to_jsonb(literal_column("whole"))).select_from(whole)
            found[f"{schema}.{name}"] = sorted(map(repr, conn.scalars(rows)))
    return found


def test_every_command_is_looked_at_here() -> None:
    assert set(WORDS) == set(ALL) - set(ELSEWHERE)
    assert set(ELSEWHERE) <= set(ALL)
    assert {"events seal", "events forget", "migrate downgrade"} <= set(WITH_DRY_RUN)


@pytest.mark.parametrize("name", WITH_DRY_RUN)
def test_a_dry_run_changes_nothing_and_the_run_does(
    run: Run, engine: Engine, module: str, words: dict[str, list[str]], tmp_path: Path, name: str
) -> None:
    app = ("--app", f"{module}:layer")
    if name == "migrate upgrade":
        assert run("migrate", "downgrade", "dp0010", "--yes", *app).code == 0
    elif name != "migrate downgrade":  # which would be refused
        make_busy(run, engine, app)
    before, files = contents(engine), sorted(each.name for each in tmp_path.iterdir())

    would = run(*words[name], "--dry-run", *app)
    after, now = contents(engine), sorted(each.name for each in tmp_path.iterdir())
    really = run(*words[name], *app)

    assert would.code == 0, would
    assert (after, now) == (before, files)
    assert really.code == 0, really
    assert contents(engine) != before


def assert_json(ran: Ran, *codes: int) -> None:
    assert ran.code in codes, ran
    for line in (*ran.out.split("\n")[:-1], *ran.err.split("\n")[:-1]):
        assert isinstance(json.loads(line, parse_constant=pytest.fail), dict), line


@pytest.mark.parametrize("name", [*WORDS])
def test_programs_are_told_in_json_what_was_found_that_nothing_was_and_what_failed(
    run: Run, engine: Engine, module: str, words: dict[str, list[str]], tmp_path: Path, name: str
) -> None:
    app = ("--app", f"{module}:layer")
    away = ("--database-url", "postgresql://ann:hidden@127.0.0.1:1/shop")
    of_nothing = {"events show": 2, "events archive restore": 2, "events archive stop": 2}

    empty = run(*words[name], "--json", *app)
    if name == "migrate downgrade":
        assert run("migrate", "upgrade", *app).code == 0
    make_busy(run, engine, app)
    (tmp_path / "new.jsonl").unlink(missing_ok=True)
    with engine.connect() as conn:
        position = conn.scalar(text("SELECT min(position) FROM datapatterns.event"))
    asked = [*words[name]]
    if name == "events show":
        asked[-1] = str(position)

    filled = run(*asked, "--json", *app)
    (tmp_path / "new.jsonl").unlink(missing_ok=True)
    failed = run(*words[name], "--json", *away)

    assert_json(empty, of_nothing.get(name, 0))
    assert_json(filled, 2 if name == "migrate downgrade" else 0)  # there are events that need it
    assert_json(failed, *((0,) if name == "migrate sql" else (2, 4)))
    assert "hidden" not in failed.out + failed.err
