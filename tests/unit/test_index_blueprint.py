"""What is written down of an index is the index."""

import pytest
from sqlalchemy import Boolean, Column, Integer, MetaData, Table, Text, and_, case, func, literal

from datapatterns.errors import IndexDefinitionError
from datapatterns.index_table import IndexTable
from datapatterns.index_table.blueprint import IndexBlueprint, blueprint_of, definition_from
from datapatterns.index_table.definition import IndexDefinition, fingerprint
from datapatterns.index_table.maintenance import create_function, create_guard_view

person = Table(
    "Person",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("e mail", Text, key="email"),
    Column("name", Text),
    Column("active", Boolean),
    schema="shop",
)
c = person.c
INDEXES = [
    IndexTable("plain", on=[c.email]),
    IndexTable("lowered", on=[func.lower(c.email)], unique=True, include=[c.name]),
    IndexTable("several", on=[c.name, func.length(c.email), c.id]),
    IndexTable("summed", on=[func.length(c.name) + c.id * 2], where=c.active),
    IndexTable("partial", on=[c.email], where=and_(c.active, c.name != "{it's} 100%:x \\ é")),
    IndexTable("cased", on=[case((c.active, c.name), else_=literal("-", Text))]),
    IndexTable("joined", on=[c.name + "{}" + c.email], where=c.email.is_not(None)),
]
IDS = [index.name for index in INDEXES]


@pytest.mark.parametrize("index", INDEXES, ids=IDS)
def test_a_definition_survives_being_written_down(index: IndexTable) -> None:
    stored = IndexBlueprint.of_json(blueprint_of(index.definition).as_json())

    again = definition_from(index.name, stored, schema=index.definition.schema)

    assert fingerprint(again) == fingerprint(index.definition)
    assert again.columns == index.definition.columns
    assert again.used_columns == index.definition.used_columns
    assert blueprint_of(again) == stored


def test_what_is_written_down_is_for_people() -> None:
    assert blueprint_of(INDEXES[1].definition) == IndexBlueprint(
        table="Person",
        primary_key=("id",),
        key={"key_1": "lower({e mail})"},
        table_schema="shop",
        include=("name",),
        unique=True,
    )


def test_an_expression_stays_one_wherever_it_is_used() -> None:
    joined = INDEXES[-1].definition
    again = definition_from("joined", blueprint_of(joined), schema="datapatterns")

    assert "(" in _key_is_there(again)
    assert 'old_rows."e mail"' in create_function(again, loosely_equal=frozenset())


def test_a_name_with_a_brace_is_refused() -> None:
    odd = Table("odd", MetaData(), Column("id", Integer, primary_key=True), Column("a{b", Text))

    with pytest.raises(IndexDefinitionError, match="has a brace"):
        blueprint_of(IndexTable("odd_by_ab", on=[odd.c["a{b"]]).definition)


def _key_is_there(definition: IndexDefinition) -> str:
    return create_guard_view(definition).partition("WHERE")[2]
