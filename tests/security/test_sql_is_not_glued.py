"""No text that was put together reaches PostgreSQL as SQL, except where the reason is written here.

Linters look for SELECT, INSERT, UPDATE and DELETE in the text (S608), so ``"DROP TABLE " + name``
passes them. This looks at where text goes instead of what is in it.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = sorted(
    path.relative_to(ROOT)
    for folder in ("datapatterns", "cli", "migrations", "examples/grocer")
    for path in (ROOT / folder).rglob("*.py")
    if "datapatterns/testing" not in str(path)  # works in databases that it made itself
)
TAKES_SQL = {  # name -> which argument is SQL and nothing else
    "text": 0,
    "SQL": 0,
    "literal_column": 0,
    "exec_driver_sql": 0,
    "copy": 0,
    "static_output": 0,
}
MAY_TAKE_SQL = {"execute": 0, "scalar": 0, "scalars": 0, "run": 1, "_execute": 1}
"""These take statements of SQLAlchemy, too: only what is glued in sight can be told."""

QUOTED = "every name goes through quoted(), every value through the dialect's literals"
CHECKED = "the schema is checked to need no quotes; nothing else is inserted"
BY_POSTGRES = "PostgreSQL wrote it, quoted"
OURS = "parts of it are constants of this module"
PRINTED = "not sent anywhere, but printed"
COMPILED = "what Core compiled from constructs, with parameters"
ALLOWED = {
    "cli/datapatterns_cli/migrate.py:sql": PRINTED,
    "cli/datapatterns_cli/migrate.py:_show_plan": PRINTED,
    "cli/datapatterns_cli/shards_citus.py:citus_ddl": PRINTED,
    "cli/datapatterns_cli/shards_migrating.py:_show_plans": PRINTED,
    "cli/datapatterns_cli/shards_migrating.py:_show_sql": PRINTED,
    "datapatterns/cache_aside/query_analysis.py:read_tables": COMPILED,
    "datapatterns/change_log/capture_statements.py:create_trigger": OURS,
    "datapatterns/change_log/batch_statements.py:as_written": BY_POSTGRES,
    "datapatterns/cqrs/running/advancing.py:advance": COMPILED,
    "datapatterns/materialized_view/within.py:_written": QUOTED,
    "datapatterns/cqrs/building/copying.py:copy_rows": "takes nothing but what psycopg composed",
    "datapatterns/cqrs/building/further_indexes.py:add_further_indexes": OURS,
    "datapatterns/cqrs/building/further_indexes.py:set_replica_identity": OURS,
    "datapatterns/cqrs/building/likeness.py:<module>": OURS,
    "datapatterns/cqrs/tables/checksums.py:bucket_of": OURS,
    "datapatterns/cqrs/tables/stored_rows.py:_copied": QUOTED,
    "datapatterns/cqrs/tables/stored_rows.py:one_snapshot": QUOTED,
    "datapatterns/cqrs/tables/targets.py:lock_writers_out": QUOTED,
    "datapatterns/event_sourcing/appending/appending.py:append_events": COMPILED,
    "datapatterns/event_sourcing/appending/appending.py:append_to_streams": COMPILED,
    "datapatterns/event_sourcing/appending/reading_back.py:_statement": OURS,
    "datapatterns/event_sourcing/log/high_water.py:_present_mark": COMPILED,
    "datapatterns/event_sourcing/log/high_water.py:_published_mark": COMPILED,
    "datapatterns/event_sourcing/states/loading.py:_fetched": COMPILED,
    "datapatterns/sharding/citus/receiving.py:_delete": BY_POSTGRES,
    "datapatterns/sharding/citus/receiving.py:_merge": BY_POSTGRES,
    "datapatterns/sharding/moving/working.py:_bring_over": "its copy() takes no SQL",
    "datapatterns/sharding/moving/copying.py:pipe": "takes nothing but what psycopg composed",
    "datapatterns/sharding/moving/moved_table.py:keys_from": BY_POSTGRES,
    "datapatterns/sharding/moving/predicates.py:written": COMPILED,
    "datapatterns/sql/sending.py:send_blocks": CHECKED,
    "datapatterns/sql/sending.py:_send_async": CHECKED,
    "datapatterns/event_sourcing/log/high_water.py:read_hint": COMPILED,
    "datapatterns/index_table/backfilling.py:backfill_chunk": QUOTED,
    "datapatterns/index_table/backfilling.py:_beyond": QUOTED,
    "datapatterns/index_table/blueprint.py:_written": "not sent anywhere, but written down",
    "datapatterns/index_table/blueprint.py:marked": "not sent anywhere, but written down",
    "datapatterns/index_table/creating.py:drop_index": QUOTED,
    "datapatterns/index_table/creating.py:_build_behind": QUOTED,
    "datapatterns/index_table/creating.py:_rehearsal": QUOTED,
    "datapatterns/index_table/creating.py:_rehearse_triggers": QUOTED,
    "datapatterns/index_table/creating.py:_require_one_meaning": QUOTED,
    "datapatterns/index_table/finishing.py:retry_index": QUOTED,
    "datapatterns/index_table/maintenance.py:_record": QUOTED,
    "datapatterns/index_table/states.py:is_ready": COMPILED,
    "datapatterns/index_table/sweeping.py:sweep_index": QUOTED,
    "datapatterns/index_table/sweeping.py:_place": QUOTED,
    "datapatterns/index_table/statements.py:run": "its callers are looked at instead",
    "datapatterns/index_table/verifying.py:repair_index": QUOTED,
    "datapatterns/materialized_view/creating.py:_create_stored": OURS,
    "datapatterns/materialized_view/creating.py:_written": COMPILED,
    "datapatterns/materialized_view/rebuilding.py:rebuild": "a view's name needs no quotes",
    "datapatterns/materialized_view/needs.py:_has_own_equality": BY_POSTGRES,
    "datapatterns/materialized_view/needs.py:_stored": COMPILED,
    "datapatterns/materialized_view/needs.py:has_hash": BY_POSTGRES,
    "datapatterns/materialized_view/realtime.py:create_realtime": COMPILED,
    "datapatterns/materialized_view/shown_types.py:as_defined": BY_POSTGRES,
    "datapatterns/materialized_view/verifying.py:hold_sources": BY_POSTGRES,
    "datapatterns/outcomes.py:take_trace": OURS,
    "datapatterns/outcomes.py:read_outcome": OURS,
    "datapatterns/sharding/broadcasting/copying.py:_copy": "psycopg composed it",
    "datapatterns/sharding/scatter/combining.py:_create_table": COMPILED,
    "datapatterns/sharding/scatter/copy_streams.py:_read_all_async": COMPILED,
    "datapatterns/sharding/scatter/copy_streams.py:_write_all_async": COMPILED,
    "datapatterns/sharding/scatter/copy_streams.py:read_all": COMPILED,
    "datapatterns/sharding/scatter/copy_streams.py:write_all": COMPILED,
    "datapatterns/sql/composing.py:execute": "takes nothing but what psycopg composed",
    "datapatterns/sql/composing.py:execute_written": BY_POSTGRES,
    "examples/grocer/datapatterns_grocer/chapters/receipts.py:copy_rows": OURS,
    "examples/grocer/datapatterns_grocer/databases.py:_drop": "names that the demo draws itself",
    "examples/grocer/datapatterns_grocer/databases.py:_create": "names that the demo draws itself",
    "examples/grocer/datapatterns_grocer/dataset.py:_define": "DuckDB, in memory; " + OURS,
    "migrations/datapatterns_migrations/env.py:<module>": PRINTED,
    "migrations/datapatterns_migrations/placement.py:_execute": "texts of migrations; " + CHECKED,
    "migrations/datapatterns_migrations/placement.py:_record": CHECKED,
    "migrations/datapatterns_migrations/placement.py:_refuse_step_from_elsewhere": CHECKED,
}


@dataclass(frozen=True)
class Glued:
    place: str
    line: int
    code: str


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_sql_is_composed_or_constant(path: Path) -> None:
    found = list(glued_in(path, (ROOT / path).read_text()))

    assert [each for each in found if each.place not in ALLOWED] == []


def test_the_list_of_exceptions_holds_nothing_that_is_gone() -> None:
    places = {each.place for path in PRODUCT for each in glued_in(path, (ROOT / path).read_text())}

    assert set(ALLOWED) - places == set()


@pytest.mark.parametrize(
    "code",
    [
        'conn.execute(text(f"DROP TABLE {name}"))',
        'conn.execute(text("DROP TABLE " + name))',
        'conn.execute(text("DROP TABLE %s" % name))',
        'conn.execute(text("DROP TABLE {}".format(name)))',
        'conn.execute("DROP TABLE {}".format(name))',
        'cursor.execute(f"DROP TABLE {name}")',
        'cursor.copy(f"COPY {name} FROM STDIN")',
        "conn.exec_driver_sql(statement)",
        'conn.exec_driver_sql(" ".join(["DROP TABLE", name]))',
        'statement = "DROP TABLE " + name\nconn.execute(statement)',
        'statement = "DROP TABLE "\nstatement += name\nconn.execute(statement)',
        "sql.SQL(name)",
        "select(literal_column(name))",
        'run(conn, f"DROP TABLE {name}")',
    ],
)
def test_what_is_glued_is_found(code: str) -> None:
    """The control, ``"DROP TABLE " + name`` among them."""
    assert len(list(glued_in(Path("x.py"), code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        'conn.execute(text("SELECT :x" " FROM y"), {"x": x})',
        'STATEMENT = "SELECT 1"\ndef f(): conn.exec_driver_sql(STATEMENT)',
        'sql.SQL("DROP TABLE {}").format(sql.Identifier(name))',
        "conn.execute(select(table).where(table.c.x == f(x)))",
        'logger.info("done %s" % x)',
    ],
)
def test_what_is_constant_or_composed_passes(code: str) -> None:
    assert list(glued_in(Path("x.py"), code)) == []


def glued_in(path: Path, code: str) -> Iterator[Glued]:
    """Return where text that is no constant goes to PostgreSQL."""
    tree = ast.parse(code)
    constants = _constants(tree)
    for scope in _scopes(tree):
        glued = _glued_names(scope.body)
        for call in scope.calls:
            name = _name_of(call.func)
            only, maybe = TAKES_SQL.get(name), MAY_TAKE_SQL.get(name)
            place = only if only is not None else maybe
            if place is None or len(call.args) <= place:
                continue
            argument = call.args[place]
            if _is_glued(argument, glued) or (
                only is not None and not _is_constant(argument, constants)
            ):
                where = f"{path}:{scope.name}"
                yield Glued(where, call.lineno, ast.unparse(argument)[:80])


@dataclass(frozen=True)
class _Scope:
    name: str
    body: list[ast.AST]

    @property
    def calls(self) -> list[ast.Call]:
        return [node for node in self.body if isinstance(node, ast.Call)]


def _scopes(tree: ast.Module) -> Iterator[_Scope]:
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for function in functions:
        yield _Scope(function.name, [node for node in ast.walk(function) if node is not function])
    yield _Scope("<module>", [node for node in ast.walk(tree) if id(node) not in inside])


def _constants(tree: ast.Module) -> set[str]:
    """Return the names that the module gives to constant text."""
    return {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _glued_names(body: list[ast.AST]) -> set[str]:
    names = set()
    for node in body:
        if isinstance(node, ast.Assign) and _is_glued(node.value, set()):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def _is_glued(node: ast.expr, glued: set[str]) -> bool:
    match node:
        case ast.JoinedStr():
            return any(isinstance(value, ast.FormattedValue) for value in node.values)
        case ast.BinOp(left, ast.Add() | ast.Mod(), right):
            return any(_is_text(side) or _is_glued(side, glued) for side in (left, right))
        case ast.Call(ast.Attribute(value, "format" | "join" | "replace")):
            return _is_text(value) or _is_glued(value, glued)
        case ast.Name(name):
            return name in glued
        case _:
            return False


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_constant(node: ast.expr, constants: set[str]) -> bool:
    return _is_text(node) or (isinstance(node, ast.Name) and node.id in constants)


def _name_of(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
