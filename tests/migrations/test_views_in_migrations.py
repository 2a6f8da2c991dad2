"""Materialized views in an application's own Alembic environment."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    cast,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.exc import SAWarning

from datapatterns.alembic import DropMaterializedViewOp, register_views
from datapatterns.errors import ViewDefinitionError, ViewMigrationError
from datapatterns.materialized_view import MaterializedView, Views
from tests.fixtures.alembic_environments import Environment
from tests.fixtures.view_tables import AnySelect, run, verify

pytestmark = pytest.mark.postgres


def lines(metadata: MetaData, *more: Column[Any]) -> Table:
    return Table(
        "line",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("week", Integer),
        Column("cents", Integer),
        *more,
    )


def weekly(line: Table) -> AnySelect:
    return select(line.c.week, func.sum(line.c.cents).label("cents")).group_by(line.c.week)


def shop(**queries: Callable[[Table], AnySelect]) -> MetaData:
    """Return a shop's tables with views; each is what its function makes of the lines."""
    metadata = MetaData()
    line = lines(metadata)
    views = [MaterializedView(name, query(line)) for name, query in queries.items()]
    register_views(metadata, views)
    return metadata


def declared(metadata: MetaData | list[MetaData], name: str = "weekly") -> MaterializedView:
    assert isinstance(metadata, MetaData)
    views: Views = metadata.info["datapatterns.views"]["datapatterns"]
    return views.find(name)


def shown(engine: Engine, name: str = "weekly") -> list[tuple[Any, ...]]:
    with engine.connect() as conn:
        rows = conn.execute(text(f"SELECT * FROM datapatterns.{name} ORDER BY 1, 2"))  # noqa: S608
        return [tuple(row) for row in rows]


def operations(code: str) -> list[str]:
    """Return what the upgrade of a revision does, in order."""
    return re.findall(r"^    op\.(\w+)\(", code.split("def downgrade", maxsplit=1)[0], re.MULTILINE)


def test_a_view_comes_and_goes_with_its_table(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    code = environment.revise()

    for _ in range(2):
        environment.upgrade()
        assert environment.differences() == []
        environment.downgrade("base")
    environment.upgrade()
    run(environment.engine, "INSERT INTO line VALUES (1, 7, 250)")
    with environment.engine.begin() as conn:
        declared(environment.metadata).populate(conn)

    assert operations(code) == ["create_table", "create_materialized_view"]
    assert shown(environment.engine) == [(7, 250)]
    assert verify(environment.engine, declared(environment.metadata)) == []


def test_a_view_may_be_called_as_another_one_with_a_word_more(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly, weekly_asked=weekly)
    environment.revise()

    environment.upgrade()

    assert environment.differences() == []


def test_a_revision_needs_none_of_what_the_code_declares(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.metadata = MetaData()

    environment.upgrade()
    environment.downgrade("base")


AWKWARD: dict[str, Callable[[Table], AnySelect]] = {
    "literals": lambda line: select(line.c.week).where(
        line.c.week.in_([1, 2, 3]), cast(line.c.id, Text).not_in(["a%", ":b", "o'c", '"d"', "é€𝄞"])
    ),
    "lines": lambda line: select(line.c.week).where(cast(line.c.id, Text) != "two  \n\n   lines "),
    "slashes": lambda line: select(line.c.week).where(cast(line.c.id, Text) != "\\n\\"),
    "quotes": lambda line: select(line.c.week.label('"""')).where(cast(line.c.id, Text) != "'''"),
    "percents": lambda line: select((line.c.id % 7).label("50% of: all")),
    "aliases": lambda line: (
        select((a := line.alias("a")).c.week, func.count().label("n"))
        .join(b := line.alias("B"), a.c.id == b.c.week)
        .where(b.c.cents.between(1, 5) | b.c.cents.is_(None))
        .group_by(a.c.week)
    ),
    "comments": lambda line: select(line.c.week, literal_column("1 -- one\n").label("one")),
    "dollars": lambda line: select(line.c.week, literal_column("$$a  b$$::text").label("one")),
}


@pytest.mark.parametrize("name", sorted(AWKWARD))
def test_nothing_differs_on_a_second_look(environment: Environment, name: str) -> None:
    environment.metadata = shop(awkward=AWKWARD[name])
    environment.revise()
    environment.upgrade()

    assert environment.differences() == []
    with environment.engine.begin() as conn:
        declared(environment.metadata, "awkward").populate(conn)


def test_a_view_that_is_no_longer_declared_is_dropped(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly, other=weekly)
    environment.revise()
    environment.upgrade()
    environment.metadata = shop(other=weekly)

    code = environment.revise()
    environment.upgrade()
    assert environment.differences() == []
    environment.downgrade("r1")
    environment.metadata = shop(weekly=weekly, other=weekly)

    assert operations(code) == ["drop_materialized_view"]
    assert environment.compared() == []


def test_views_stay_as_they_are_where_none_are_registered(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.upgrade()
    environment.metadata = lines(MetaData()).metadata
    assert environment.differences() == []

    register_views(environment.metadata, [])
    assert environment.differences() == [("remove_materialized_view", "datapatterns", "weekly")]


@pytest.mark.parametrize("change", ["retyped", "dropped"])
def test_a_view_gets_out_of_the_way_of_what_it_reads(environment: Environment, change: str) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.upgrade()
    environment.metadata = MetaData()
    columns = {"retyped": [Column("cents", BigInteger)], "dropped": []}[change]
    week, key = Column("week", Integer), Column("id", Integer, primary_key=True)
    line = Table("line", environment.metadata, key, week, *columns)
    query = select(line.c.week, func.count(line.c.id).label("lines")).group_by(line.c.week)
    register_views(environment.metadata, [MaterializedView("weekly", query)])

    code = environment.revise()
    environment.upgrade()
    assert environment.differences() == []
    environment.downgrade("r1")
    environment.metadata = shop(weekly=weekly)

    between = {"retyped": "alter_column", "dropped": "drop_column"}[change]
    assert operations(code) == ["drop_materialized_view", between, "create_materialized_view"]
    assert environment.compared() == []


def test_a_view_goes_before_its_table(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.upgrade()
    environment.metadata = MetaData()
    register_views(environment.metadata, [])

    code = environment.revise()
    environment.upgrade()
    environment.downgrade("r1")
    environment.metadata = shop(weekly=weekly)

    assert operations(code) == ["drop_materialized_view", "drop_table"]
    assert environment.compared() == []


DRIFT = {
    "view gone": "DROP VIEW datapatterns.weekly",
    "real-time view gone": "DROP VIEW datapatterns.weekly_realtime",
    "view replaced": (
        "CREATE OR REPLACE VIEW datapatterns.weekly AS SELECT 1 AS week, 2::bigint AS cents"
    ),
    "stored rows gone": "DROP TABLE datapatterns.weekly_stored CASCADE",
    "stored column": "ALTER TABLE datapatterns.weekly_stored ADD COLUMN more int",
    "index gone": "DROP INDEX datapatterns.weekly_stored_key_hash_idx",
    "trigger gone": "DROP TRIGGER datapatterns_capture_delete ON line",
    "trigger disabled": "ALTER TABLE line DISABLE TRIGGER datapatterns_capture_update",
    "trigger ordinary": "ALTER TABLE line ENABLE TRIGGER datapatterns_capture_insert",
    "log gone": (
        "DO $$BEGIN EXECUTE (SELECT format('DROP VIEW datapatterns.%I CASCADE', log_name)"
        " FROM datapatterns.captured_table); END$$"
    ),
    "rows of the log gone": (
        "DO $$BEGIN EXECUTE (SELECT format('DROP TABLE datapatterns.%I CASCADE',"
        " replace(log_name, 'log', 'rows')) FROM datapatterns.captured_table); END$$"
    ),
    "batches of the log gone": (
        "DO $$BEGIN EXECUTE (SELECT format('DROP TABLE datapatterns.%I CASCADE',"
        " replace(log_name, 'log', 'batches')) FROM datapatterns.captured_table); END$$"
    ),
    "function replaced": (
        "DO $$BEGIN EXECUTE (SELECT format('CREATE OR REPLACE FUNCTION %s RETURNS trigger"
        " LANGUAGE plpgsql AS ''BEGIN RETURN NULL; END''', oid::regprocedure) FROM pg_proc"
        " WHERE proname LIKE 'capture_line%'); END$$"
    ),
}


@pytest.mark.parametrize("name", sorted(DRIFT))
def test_what_was_changed_by_hand_is_found_and_mended(environment: Environment, name: str) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.upgrade()
    with environment.engine.begin() as conn:
        conn.exec_driver_sql(DRIFT[name], execution_options={"no_parameters": True})

    code = environment.revise()
    environment.upgrade()

    assert operations(code) == ["drop_materialized_view", "create_materialized_view"]
    assert environment.differences() == []


def test_an_index_of_your_own_is_no_difference(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.upgrade()
    run(environment.engine, "CREATE INDEX mine ON datapatterns.weekly_stored (rows)")

    assert environment.differences() == []


@pytest.mark.parametrize("hook", ["include_name", "include_object"])
def test_a_hook_decides_what_is_compared(environment: Environment, hook: str) -> None:
    environment.metadata = shop(weekly=weekly, other=weekly)
    environment.revise()
    environment.upgrade()
    asked: list[tuple[str, str]] = []

    def include_name(name: str | None, kind: str, _parents: object) -> bool:
        asked.append((str(name), kind))
        return kind != "materialized_view"

    def include_object(_object: object, name: str, kind: str, *_: object) -> bool:
        return include_name(name, kind, None)

    environment.options = {hook: {"include_name": include_name}.get(hook, include_object)}
    environment.metadata = shop(other=lambda line: weekly(line).where(line.c.cents > 3))

    assert environment.differences() == []
    assert {("weekly", "materialized_view"), ("other", "materialized_view")} <= {*asked}


def test_the_librarys_own_tables_are_not_proposed_for_removal(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.upgrade()
    environment.options = {"include_schemas": True}

    assert environment.differences() == []

    environment.plugins = ("alembic.autogenerate.*",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # of types that it does not know
        found = environment.differences()
    removed = [each[1] for each in found if each[0] == "remove_table"]
    assert ("datapatterns", "event") in {(table.schema, table.name) for table in removed}


def test_a_table_of_your_own_may_live_beside_the_librarys(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    Table("mine", environment.metadata, Column("id", Integer), schema="datapatterns")
    environment.options = {"include_schemas": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)
        environment.revise()
        environment.upgrade()
        assert environment.differences() == []


def test_views_may_be_spread_over_several_metadata(environment: Environment) -> None:
    one, other = shop(weekly=weekly), MetaData()
    register_views(other, [MaterializedView("other", weekly(lines(MetaData())))])
    environment.metadata = [one, other]
    code = environment.revise()
    environment.upgrade()

    assert operations(code)[1:] == ["create_materialized_view"] * 2
    assert environment.differences() == []


def test_printed_sql_is_refused(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()

    with pytest.raises(ViewMigrationError, match="without --sql"):
        environment.sql()


def test_a_database_without_the_librarys_tables_is_refused(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    run(environment.engine, "DROP SCHEMA datapatterns CASCADE")

    with pytest.raises(ViewMigrationError, match="datapatterns migrate upgrade"):
        environment.upgrade()


def test_the_way_back_of_a_drop_has_to_be_known() -> None:
    with pytest.raises(ViewMigrationError, match="blueprint="):
        DropMaterializedViewOp("weekly", "datapatterns").reverse()


def test_the_database_chooses_how_a_view_is_kept(environment: Environment) -> None:
    run(environment.engine, "CREATE TABLE line (id int PRIMARY KEY, week money, cents int)")
    environment.options = {"compare_type": False}
    environment.metadata = shop(weekly=weekly)

    code = environment.revise()
    environment.upgrade()

    assert "strategy=Strategy.REBUILD" in code
    assert environment.differences() == []


def test_a_revision_for_other_columns_says_what_to_do(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    path = environment.folder / "versions" / "r1_r1.py"
    path.write_text(path.read_text().replace("'week', sa.Integer()", "'week', postgresql.MONEY()"))
    path.write_text("from sqlalchemy.dialects import postgresql\n" + path.read_text())

    with pytest.raises(ViewDefinitionError, match="hashed") as refused:
        environment.upgrade()

    assert "generate it anew" in refused.value.__notes__[0]


def refresh(environment: Environment) -> None:
    """Do what a worker with today's code does, until nothing is left to do."""
    for _ in range(2):
        with environment.engine.begin() as conn:
            declared(environment.metadata).refresh(conn)


def test_a_changed_query_replaces_the_view_behind_its_readers(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.upgrade()
    run(environment.engine, "INSERT INTO line VALUES (1, 7, 250), (2, 8, 1)")
    with environment.engine.begin() as conn:
        declared(environment.metadata).populate(conn)
    old = environment.metadata
    environment.metadata = shop(weekly=lambda line: weekly(line).where(line.c.cents > 99))

    code = environment.revise()
    environment.upgrade()
    assert operations(code) == ["replace_materialized_view"]
    assert shown(environment.engine) == [(7, 250), (8, 1)]
    assert environment.differences() == []
    refresh(environment)
    assert shown(environment.engine) == [(7, 250)]
    assert environment.differences() == []

    environment.downgrade("r1")
    environment.metadata = old
    assert environment.compared() == []
    refresh(environment)
    assert shown(environment.engine) == [(7, 250), (8, 1)]
    assert environment.compared() == []


def test_what_reads_a_new_column_comes_after_it_and_goes_before(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.upgrade()
    run(environment.engine, "INSERT INTO line VALUES (1, 7, 250)")
    with environment.engine.begin() as conn:
        declared(environment.metadata).populate(conn)
    environment.metadata = MetaData()
    line = lines(environment.metadata, Column("pieces", Integer))
    query = weekly(line).add_columns(func.sum(line.c.pieces).label("pieces"))
    register_views(environment.metadata, [MaterializedView("weekly", query)])

    code = environment.revise()
    environment.upgrade()
    refresh(environment)
    assert operations(code) == ["add_column", "replace_materialized_view"]
    assert (shown(environment.engine), environment.differences()) == ([(7, 250, None)], [])
    environment.downgrade("r1")
    environment.metadata = shop(weekly=weekly)

    assert (shown(environment.engine), environment.compared()) == ([], [])


def test_what_only_looks_otherwise_keeps_its_rows(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    path = environment.folder / "versions" / "r1_r1.py"
    path.write_text(
        path.read_text().replace(
            " AS cents\n                FROM datapatterns.weekly_stored\n            ",
            " + 0 AS cents\n                FROM datapatterns.weekly_stored\n            ",
            1,
        )
    )
    environment.upgrade()
    run(environment.engine, "INSERT INTO line VALUES (1, 7, 250)")
    with environment.engine.begin() as conn:
        declared(environment.metadata).populate(conn)

    code = environment.revise()
    environment.upgrade()

    assert operations(code) == ["replace_materialized_view"]
    assert (shown(environment.engine), environment.differences()) == ([(7, 250)], [])


def test_all_revisions_of_a_replaced_view_make_an_empty_database(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.upgrade()
    environment.metadata = shop(
        weekly=lambda line: select(func.max(line.c.cents).label("most"), line.c.week).group_by(
            line.c.week
        )
    )
    environment.revise()
    environment.downgrade("base")
    environment.upgrade()

    assert environment.differences() == []
    with environment.engine.begin() as conn:
        declared(environment.metadata).populate(conn)
    assert verify(environment.engine, declared(environment.metadata)) == []


def without_cents(*views: str) -> MetaData:
    """Return a shop whose lines cost nothing; its views count them."""
    metadata = MetaData()
    line = Table("line", metadata, Column("id", Integer, primary_key=True), Column("week", Integer))
    register_views(metadata, [MaterializedView(name, by_week(line)) for name in views])
    return metadata


def by_week(line: Table) -> AnySelect:
    return select(line.c.week, func.count().label("lines")).group_by(line.c.week)


def test_a_column_goes_that_another_view_never_read(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly, other=by_week)
    environment.revise()
    environment.upgrade()
    for view in (declared(environment.metadata), declared(environment.metadata, "other")):
        with environment.engine.begin() as conn:
            view.populate(conn)
    environment.metadata = without_cents("weekly", "other")

    code = environment.revise()
    environment.upgrade()
    run(environment.engine, "INSERT INTO line VALUES (1, 7)")
    other = declared(environment.metadata, "other")
    with environment.engine.begin() as conn:
        freshness = other.freshness(conn)

    assert operations(code) == [
        "drop_materialized_view",
        "drop_column",
        "create_materialized_view",
    ]
    assert (freshness.pending_rows, freshness.has_to_be_rebuilt) == (1, False)
    assert verify(environment.engine, other) == []


def test_a_column_goes_without_a_gap_in_two_revisions(environment: Environment) -> None:
    environment.metadata = shop(weekly=weekly)
    environment.revise()
    environment.upgrade()
    with environment.engine.begin() as conn:
        declared(environment.metadata).populate(conn)
    environment.metadata = shop(weekly=by_week)
    environment.revise()
    environment.upgrade()
    refresh(environment)
    environment.metadata = without_cents("weekly")
    code = environment.revise()
    environment.upgrade()

    assert operations(code) == ["drop_column"]
    assert environment.differences() == []
