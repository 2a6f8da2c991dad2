"""What keeps an index that is behind from missing a change, each also taken out once."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, select

from datapatterns.change_log import ChangeLog, Consumer, Snapshot, current_snapshot
from datapatterns.index_table import IndexTable, following
from datapatterns.index_table.definition import IndexDefinition
from tests.fixtures.index_tables import build, order_line, run, tables

pytestmark = pytest.mark.postgres

by_product = IndexTable("line_by_product", on=[order_line.c.product_id], mode="async")
_take_in, _run = following.take_in, following._run  # noqa: SLF001 -- taken out below


@pytest.fixture(autouse=True)
def built(engine: Engine) -> None:
    tables.create_all(engine)
    execute(engine, "INSERT INTO order_line SELECT g, g FROM generate_series(1, 9) g")
    build(engine, by_product)


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in statements:
            run(conn, statement)


def catch_up(engine: Engine) -> None:
    with engine.begin() as conn:
        assert by_product.catch_up(conn) is not None


def a_late_commit(engine: Engine) -> None:
    with engine.connect() as late:
        run(late, "UPDATE order_line SET product_id = 100 WHERE id = 1")
        execute(engine, "UPDATE order_line SET product_id = 100 WHERE id = 2")
        catch_up(engine)
        late.commit()
    catch_up(engine)
    execute(engine, "UPDATE order_line SET product_id = 100 WHERE id > 2")


def a_truncation(engine: Engine) -> None:
    execute(engine, "TRUNCATE order_line", "INSERT INTO order_line VALUES (1, 100)")


def a_consumer_that_was_away(engine: Engine) -> None:
    log = ChangeLog()
    with engine.begin() as conn:
        log.forget_consumer(conn, "index_table:line_by_product")
    execute(engine, "UPDATE order_line SET product_id = 100")
    with engine.begin() as conn:
        log.collect_garbage(conn)
        name = log.capture(conn, order_line, [])
        log.register_consumer(conn, "index_table:line_by_product", "index_table", log_names=[name])


def a_change_while_changes_are_applied(engine: Engine) -> None:
    """A change that commits between the statement that applies and the one that notes it."""
    execute(engine, "UPDATE order_line SET product_id = 100 WHERE id > 1")
    with engine.begin() as conn:
        consumer = following.hold(conn, by_product.definition)
        assert consumer is not None
        done = following._apply(conn, by_product.definition, consumer)  # noqa: SLF001 -- half of a step
        execute(engine, "UPDATE order_line SET product_id = 100 WHERE id = 1")
        following.advance(conn, by_product.definition, consumer, done)


SCENARIOS = [
    a_late_commit,
    a_truncation,
    a_consumer_that_was_away,
    a_change_while_changes_are_applied,
]
Scenario = Callable[[Engine], None]


def is_right(engine: Engine) -> bool:
    catch_up(engine)
    with engine.connect() as conn:
        entries = by_product.covering(conn).entries
        rows = conn.exec_driver_sql("SELECT product_id, id FROM order_line").all()
    found = sorted((*entry.key, *entry.primary_key) for entry in entries)
    assert all(row.product_id == 100 for row in rows)
    return found == sorted(map(tuple, rows))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_change_is_missed(engine: Engine, scenario: Scenario) -> None:
    scenario(engine)

    assert is_right(engine)


def without_late_commits(snapshot: Snapshot) -> dict[str, object]:
    return {"consumed_xmax": snapshot.xmax, "consumed_xip": []}


def without_truncations(*statement: Any) -> object:  # noqa: ANN401 -- passed on
    return replace(_run(*statement), says_nothing=False)


def without_rebuilding(conn: Any, definition: IndexDefinition, consumer: Consumer) -> object:  # noqa: ANN401 -- passed on
    return _take_in(conn, definition, replace(consumer, populated=True, changed_logs=()))


def with_a_later_snapshot(
    conn: Any,  # noqa: ANN401 -- passed on
    definition: IndexDefinition,
    consumer: Consumer,
    done: Any,  # noqa: ANN401 -- passed on
    **how: bool,
) -> bool:
    later = conn.scalar(select(current_snapshot))
    return _advance(conn, definition, consumer, replace(done, snapshot=later), **how)


_advance = following.advance


@pytest.mark.parametrize(
    ("guard", "instead", "scenario"),
    [
        ("snapshot_parameters", without_late_commits, a_late_commit),
        ("_run", without_truncations, a_truncation),
        ("take_in", without_rebuilding, a_consumer_that_was_away),
        ("advance", with_a_later_snapshot, a_change_while_changes_are_applied),
    ],
)
def test_without_its_guard_each_change_is_missed(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    guard: str,
    instead: object,
    scenario: Scenario,
) -> None:
    monkeypatch.setattr(following, guard, instead)

    scenario(engine)

    assert not is_right(engine)
