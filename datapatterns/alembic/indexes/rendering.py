"""Write operations on index tables into a revision, for people to read and review."""

from dataclasses import fields
from typing import Final

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext

from datapatterns.alembic.indexes.operations import CreateIndexTableOp, DropIndexTableOp
from datapatterns.index_table.blueprint import IndexBlueprint

_IMPORT: Final = "from datapatterns.alembic import IndexBlueprint"


@renderers.dispatch_for(CreateIndexTableOp)
def _create(context: AutogenContext, operation: CreateIndexTableOp) -> str:
    return _call(context, "create", operation)


@renderers.dispatch_for(DropIndexTableOp)
def _drop(context: AutogenContext, operation: DropIndexTableOp) -> str:
    return _call(context, "drop", operation)


def _call(
    context: AutogenContext, verb: str, operation: CreateIndexTableOp | DropIndexTableOp
) -> str:
    prefix = context.opts["alembic_module_prefix"] or ""
    lines = [f"{operation.name!r},", f"schema={operation.schema!r},"]
    if operation.blueprint is not None:
        context.imports.add(_IMPORT)
        lines += ["blueprint=IndexBlueprint(", *_shown(operation.blueprint), "),"]
    body = "".join(f"    {line}\n" for line in lines)
    return f"{prefix}{verb}_index_table(\n{body})"


def _shown(blueprint: IndexBlueprint) -> list[str]:
    given = {
        field.name: getattr(blueprint, field.name)
        for field in fields(blueprint)
        if getattr(blueprint, field.name) != field.default
    }
    return [
        f"    {name}={dict(value) if name == 'key' else value!r}," for name, value in given.items()
    ]
