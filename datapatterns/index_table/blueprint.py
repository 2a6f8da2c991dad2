"""An index table written down, so that it can be created without the code that declared it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sqlalchemy import Column, ColumnClause, ColumnElement, MetaData, Table, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.sql.visitors import replacement_traverse

from datapatterns.errors import IndexDefinitionError
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.statements import rendered

_MARK: Final = "\x01"
_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class IndexBlueprint:
    """All that an index table consists of; a migration does in a year what it does today.

    Expressions are SQL with columns of the table in braces, such as ``lower({email})``.

    Attributes:
        table: The table whose rows are found.
        primary_key: The columns of its primary key.
        key: What rows are found by, under the names of the index's columns.
        table_schema: The schema of ``table``; None to find it on the search path.
        include: Further columns that index rows carry.
        where: Rows for which this isn't true are left out.
        unique: No two rows have the same key.
        mode: How it is kept.
    """

    table: str
    primary_key: tuple[str, ...]
    key: Mapping[str, str]
    table_schema: str | None = None
    include: tuple[str, ...] = ()
    where: str | None = None
    unique: bool = field(default=False, kw_only=True)
    mode: str = field(default="local", kw_only=True)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        # A list, because jsonb forgets the order of names.
        return asdict(self) | {"key": [list(part) for part in self.key.items()]}

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> "IndexBlueprint":
        """Return what `as_json` wrote."""
        return cls(
            **{
                **stored,
                "primary_key": tuple(stored["primary_key"]),
                "key": dict(stored["key"]),
                "include": tuple(stored["include"]),
            }
        )


class _Written(ColumnElement[Any]):
    """An expression that is text between columns."""

    inherit_cache = False
    # What SQLAlchemy walks and copies; its own class declares it like this.
    _traverse_internals = [("columns", visitors.InternalTraversal.dp_clauseelement_list)]  # noqa: RUF012

    def __init__(self, texts: tuple[str, ...], columns: list[ColumnElement[Any]]) -> None:
        self.texts = texts
        self.columns = columns

    def self_group(self, against: Any = None) -> ColumnElement[Any]:  # noqa: ANN401 -- an operator
        """Keep together: nobody knows which operator binds least in the text."""
        return self if against is None else Grouping(self)


@compiles(_Written)
def _compile(written: _Written, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401 -- the compiler's own
    columns = [compiler.process(column, **options) for column in written.columns]
    # In a statement with parameters a % begins one.
    texts = map(compiler.escape_literal_column, written.texts)
    return "".join(text + column for text, column in zip(texts, [*columns, ""], strict=True))


def blueprint_of(definition: IndexDefinition) -> IndexBlueprint:
    """Write a definition down.

    Raises:
        IndexDefinitionError: The name of a column has a brace in it.
    """
    return IndexBlueprint(
        table=definition.base.name,
        primary_key=definition.primary_key,
        key={name: _written(definition, part) for name, part in definition.key.items()},
        table_schema=definition.base.schema,
        include=definition.include,
        where=None if definition.where is None else _written(definition, definition.where),
        unique=definition.unique,
        mode=definition.mode,
    )


def definition_from(name: str, blueprint: IndexBlueprint, *, schema: str) -> IndexDefinition:
    """Return the definition that was written down; its fingerprint is that of the first one."""
    expressions = [*blueprint.key.values(), *filter(None, [blueprint.where])]
    used = [*blueprint.primary_key, *blueprint.include]
    used += [column for written in expressions for column in _columns(written)]
    base = Table(
        blueprint.table,
        MetaData(),
        *(
            Column(column, primary_key=column in blueprint.primary_key)
            for column in dict.fromkeys(used)
        ),
        schema=blueprint.table_schema,
    )
    return IndexDefinition(
        name=name,
        base=base,
        key={own: _expression(written, base) for own, written in blueprint.key.items()},
        include=blueprint.include,
        where=None if blueprint.where is None else _expression(blueprint.where, base),
        unique=blueprint.unique,
        schema=schema,
        mode=blueprint.mode,
    )


def _written(definition: IndexDefinition, expression: ColumnElement[Any]) -> str:
    def marked(element: Any, **_: Any) -> ColumnElement[Any] | None:  # noqa: ANN401 -- any part
        if not isinstance(element, ColumnClause) or element.table is None:
            return None
        if re.search(r"[{}]", element.name):
            raise IndexDefinitionError(
                definition.name,
                f"the name of column {element.name!r} has a brace, which nobody can write down;"
                " create the index with its own create()",
            )
        return literal_column(f"{_MARK}{element.name}{_MARK}", element.type)

    text = rendered(replacement_traverse(expression, {}, marked))
    escaped = text.replace("{", "{{").replace("}", "}}")
    return re.sub(f"{_MARK}([^{_MARK}]+){_MARK}", r"{\1}", escaped)


def _expression(written: str, base: Table) -> ColumnElement[Any]:
    texts, end = [""], 0
    columns: list[ColumnElement[Any]] = []
    for part in _PART.finditer(written):
        texts[-1] += written[end : part.start()]
        end = part.end()
        if part[1] is None:
            texts[-1] += part[0][0]
        else:
            columns.append(base.columns[part[1]])
            texts.append("")
    texts[-1] += written[end:]
    if texts == ["", ""]:
        return columns[0]
    return _Written(tuple(texts), columns)


def _columns(written: str) -> Iterator[str]:
    return (part[1] for part in _PART.finditer(written) if part[1] is not None)
