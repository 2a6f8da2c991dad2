"""What stands upon a view stays as it was when the view gets other columns, or that is refused."""

import pytest
from sqlalchemy import Engine, func, select, text

from datapatterns.errors import ViewMigrationError
from datapatterns.materialized_view import MaterializedView
from datapatterns.materialized_view.replacing import replace_view
from tests.fixtures.view_tables import AnySelect, Line, create, create_tables, run

pytestmark = pytest.mark.postgres


def view_of(query: AnySelect) -> MaterializedView:
    return MaterializedView("weekly", query)


OLD = view_of(select(Line.week, func.sum(Line.cents).label("cents")).group_by(Line.week))
NEW = view_of(select(Line.week, func.count().label("lines")).group_by(Line.week))


@pytest.fixture
def upon(engine: Engine) -> Engine:
    """A view with another one upon it."""
    with engine.begin() as conn:
        create_tables(conn)
    create(engine, OLD)
    run(engine, "CREATE VIEW upon AS SELECT week FROM datapatterns.weekly")
    return engine


def replace(engine: Engine) -> None:
    definition = NEW.definition
    blueprint = definition.blueprint(definition.candidates[0])
    with engine.begin() as conn:
        replace_view(conn, definition.names, blueprint, at_once=True)


def test_default_privileges_give_nothing_back_that_was_taken_away(
    limited_role: str, upon: Engine
) -> None:
    run(upon, f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {limited_role}, PUBLIC")

    replace(upon)

    may = text("SELECT has_table_privilege(:role, :name, 'SELECT')")
    with upon.connect() as conn:
        for name in ("upon", "datapatterns.weekly", "datapatterns.weekly_realtime"):
            assert not conn.scalar(may, {"role": limited_role, "name": name})


def test_comments_and_grant_options_of_columns_stay(limited_role: str, upon: Engine) -> None:
    for name in ("upon", "datapatterns.weekly"):
        run(
            upon,
            f"COMMENT ON COLUMN {name}.week IS 'it''s the week'",
            f"GRANT SELECT (week) ON {name} TO {limited_role} WITH GRANT OPTION",
        )

    replace(upon)

    may = text("SELECT has_column_privilege(:role, :name, 'week', 'SELECT WITH GRANT OPTION')")
    with upon.connect() as conn:
        for name in ("upon", "datapatterns.weekly"):
            comment = text("SELECT col_description(to_regclass(:name), 1)")
            assert conn.scalar(comment, {"name": name}) == "it's the week"
            assert conn.scalar(may, {"role": limited_role, "name": name})


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (
            (
                "CREATE TRIGGER own INSTEAD OF INSERT ON upon FOR EACH ROW"
                " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
            ),
            "trigger own on view upon",
        ),
        ("CREATE RULE own AS ON DELETE TO upon DO INSTEAD NOTHING", "rule own on view upon"),
        ("ALTER VIEW upon ALTER COLUMN week SET DEFAULT 1", "default value for column week"),
    ],
    ids=["trigger", "rule", "default"],
)
def test_what_would_be_lost_with_a_view_is_named(upon: Engine, statement: str, named: str) -> None:
    run(upon, statement)

    with pytest.raises(ViewMigrationError, match=named):
        replace(upon)
