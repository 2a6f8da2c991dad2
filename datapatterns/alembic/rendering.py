"""Write operations on views into a revision, for people to read and review."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from textwrap import indent
from typing import Any, Final

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext

from datapatterns.alembic.operations import (
    CreateMaterializedViewOp,
    DropMaterializedViewOp,
    ReplaceMaterializedViewOp,
)
from datapatterns.materialized_view.blueprint import WRITTEN, Blueprint
from datapatterns.materialized_view.written_sql import canonical, is_plain, tokens_of

_IMPORT: Final = (
    "from datapatterns.alembic import Blueprint, Need, Requirement, Source, Strategy  # noqa: F401"
)
_STEP: Final = "    "
_WIDTH: Final = 88
_CLAUSES: Final = frozenset({
    "EXCEPT", "FROM", "GROUP", "HAVING", "INTERSECT", "ORDER", "UNION", "WHERE",
})  # fmt: skip
_JOINS: Final = frozenset({"CROSS", "FULL", "INNER", "JOIN", "LEFT", "OUTER", "RIGHT"})


@renderers.dispatch_for(CreateMaterializedViewOp)
def _create(context: AutogenContext, operation: CreateMaterializedViewOp) -> str:
    return _call(context, "create", operation, blueprint=operation.blueprint)


@renderers.dispatch_for(DropMaterializedViewOp)
def _drop(context: AutogenContext, operation: DropMaterializedViewOp) -> str:
    return _call(context, "drop", operation, blueprint=operation.blueprint)


@renderers.dispatch_for(ReplaceMaterializedViewOp)
def _replace(context: AutogenContext, operation: ReplaceMaterializedViewOp) -> str:
    blueprints = {"old": operation.old, "new": operation.new}
    flags = ["at_once=True"] if operation.at_once else []
    return _call(context, "replace", operation, *flags, **blueprints)


def _call(
    context: AutogenContext,
    verb: str,
    operation: CreateMaterializedViewOp | DropMaterializedViewOp | ReplaceMaterializedViewOp,
    *flags: str,
    **blueprints: Blueprint | None,
) -> str:
    context.imports.add(_IMPORT)
    prefix = context.opts["alembic_module_prefix"] or ""
    arguments = [f"{operation.name!r}", f"schema={operation.schema!r}", *flags]
    arguments += [
        f"{name}={_blueprint(blueprint)}"
        for name, blueprint in blueprints.items()
        if blueprint is not None
    ]
    return f"{prefix}{verb}_materialized_view(\n{_arguments(arguments)})"


def _blueprint(blueprint: Blueprint) -> str:
    shown = [
        f"{field.name}={_value(field.name, getattr(blueprint, field.name))}"
        for field in fields(blueprint)
    ]
    return f"Blueprint(\n{_arguments(shown)})"


def _arguments(lines: list[str]) -> str:
    return "".join(indent(f"{line},\n", _STEP) for line in lines)


def _value(name: str, value: Any) -> str:  # noqa: ANN401 -- whatever a blueprint consists of
    if name in WRITTEN:
        return _sql(value)
    if isinstance(value, tuple) and any(not isinstance(each, str) for each in value):
        return f"(\n{_arguments([_object(each) for each in value])})"
    return _object(value)


def _object(value: Any) -> str:  # noqa: ANN401 -- whatever a blueprint consists of
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if hasattr(value, "__dataclass_fields__"):
        parts = (f"{f.name}={_object(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({', '.join(parts)})"
    return repr(value)


def _sql(statement: str) -> str:
    """Return the text in triple quotes on lines, if it is the same SQL when it is read back."""
    prefix = "r" if "\\" in statement else ""
    lines = "\n".join(_lines(statement)) if is_plain(statement) else statement
    literal = f'{prefix}"""\n{indent(lines, _STEP)}\n"""'
    try:
        read_back = ast.literal_eval(_as_alembic_prints(literal))
    except (SyntaxError, ValueError):
        return repr(statement)
    return literal if canonical(read_back) == statement else repr(statement)


def _as_alembic_prints(literal: str) -> str:
    """Return the literal as Alembic indents its lines and takes spaces off their ends."""
    return re.sub(r" +$", "", indent(literal, _STEP), flags=re.MULTILINE).strip()


def _lines(statement: str) -> Iterator[str]:
    """Break the SQL before its clauses, and where a line would get too long."""
    line, previous = "", ""
    for token in tokens_of(statement):
        begins = token.text in _CLAUSES or (token.text in _JOINS and previous not in _JOINS)
        ends = begins or len(line + token.text) > _WIDTH
        if token.kind != "space" and line.endswith(" ") and ends:
            yield line.rstrip()
            line = ""
        line += token.text
        if token.kind == "word":
            previous = token.text
    yield line
