import pickle

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, bindparam, func, literal
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.errors import (
    ConfigurationError,
    IndexDefinitionError,
    IndexModeError,
    SchemaNameError,
)
from datapatterns.index_table import IndexTable
from datapatterns.index_table.definition import fingerprint
from datapatterns.index_table.entries import VerifyReport

metadata = MetaData()
person = Table(
    "person",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("email", Text),
    Column("key_1", Text),
)
other = Table("other", metadata, Column("id", Integer, primary_key=True), Column("email", Text))
keyless = Table("keyless", metadata, Column("email", Text))


class Base(DeclarativeBase):
    pass


class Mapped1(Base):
    __tablename__ = "person"

    id: Mapped[int] = mapped_column(primary_key=True)
    electronic_mail: Mapped[str] = mapped_column("email", Text)


def test_mapped_attributes_and_columns_declare_the_same_index() -> None:
    by_attribute = IndexTable("by_email", on=[Mapped1.electronic_mail])
    by_column = IndexTable("by_email", on=[person.c.email])

    assert fingerprint(by_attribute.definition) == fingerprint(by_column.definition)
    assert by_attribute.definition.columns == ("email", "id")


def test_an_expression_gets_a_name_that_no_column_has() -> None:
    index = IndexTable("by_email", on=[func.lower(person.c.email)])

    assert tuple(index.definition.key) == ("key_1_",)
    assert index.definition.used_columns == {"email", "id"}


def test_whatever_changes_index_rows_changes_the_fingerprint() -> None:
    variants = [
        IndexTable("i", on=[person.c.email]),
        IndexTable("i", on=[person.c.key_1]),
        IndexTable("i", on=[func.lower(person.c.email)]),
        IndexTable("i", on=[person.c.email], unique=True),
        IndexTable("i", on=[person.c.email], include=[person.c.key_1]),
        IndexTable("i", on=[person.c.email], where=person.c.key_1 == "a"),
        IndexTable("i", on=[person.c.email], where=person.c.key_1 == "b"),
    ]

    assert len({fingerprint(index.definition) for index in variants}) == len(variants)


def test_indexes_that_are_there_keep_their_fingerprints() -> None:
    # Written down in databases: with another one, an index would count as changed.
    partial = IndexTable("i", on=[100 // person.c.id], where=person.c.id != 0)

    assert (
        fingerprint(partial.definition)
        == "ffec0e2ed3ff68ba54ecfd21170af0debf512c443a8fe050655c9a3c9081e575"
    )


@pytest.mark.parametrize("name", ["", "x" * 41, "é" * 21, "a\0b"])
def test_a_name_that_cannot_name_all_its_objects_is_refused(name: str) -> None:
    with pytest.raises(IndexDefinitionError, match="1 to 40 bytes"):
        IndexTable(name, on=[person.c.email])


def test_a_declaration_over_no_or_several_tables_is_refused() -> None:
    with pytest.raises(IndexDefinitionError, match="exactly one table"):
        IndexTable("i", on=[person.c.email, other.c.email])
    with pytest.raises(IndexDefinitionError, match="exactly one table"):
        IndexTable("i", on=[])
    with pytest.raises(IndexDefinitionError, match="exactly one table"):
        IndexTable("i", on=[person.c.email], where=other.c.email == "x")
    with pytest.raises(IndexDefinitionError, match="can be included"):
        IndexTable("i", on=[person.c.email], include=[other.c.email])
    with pytest.raises(IndexDefinitionError, match="can be included"):
        IndexTable("i", on=[person.c.email], include=[func.lower(person.c.email)])
    with pytest.raises(IndexDefinitionError, match="same for all rows"):
        IndexTable("i", on=[person.c.email, literal(1)])
    with pytest.raises(IndexDefinitionError, match="twice"):
        IndexTable("i", on=[person.c.email, person.c.email])
    with pytest.raises(IndexDefinitionError, match="no primary key"):
        IndexTable("i", on=[keyless.c.email])
    with pytest.raises(IndexDefinitionError, match="not on a subquery"):
        IndexTable("i", on=[person.alias().c.email])


def test_a_parameter_without_value_is_refused() -> None:
    with pytest.raises(IndexDefinitionError, match="'least' needs a value"):
        IndexTable("i", on=[person.c.email], where=person.c.id > bindparam("least"))
    IndexTable("i", on=[person.c.email], where=person.c.id > bindparam("least", 5))


@pytest.mark.parametrize("mode", ["2pc", "nonsense"])
def test_modes_that_do_not_exist_yet_are_refused_by_name(mode: str) -> None:
    with pytest.raises(IndexModeError, match="not available yet; use 'local'") as refused:
        IndexTable("i", on=[person.c.email], mode=mode)  # type: ignore[arg-type]  # refused

    assert isinstance(refused.value, ConfigurationError)
    copy = pickle.loads(pickle.dumps(refused.value))  # noqa: S301 -- our own bytes
    assert (copy.index, copy.mode) == ("i", mode)


def test_a_schema_that_would_need_quotes_is_refused() -> None:
    with pytest.raises(SchemaNameError):
        IndexTable("i", on=[person.c.email], schema="Not Mine")


def test_a_mode_that_was_chosen_says_why_and_one_that_was_declared_does_not() -> None:
    chosen = IndexTable("i", on=[person.c.email])
    declared = IndexTable("i", on=[person.c.email], mode="local")

    assert chosen.explain().mode == declared.explain().mode == "local"
    assert chosen.explain().chosen_because == "rows and index rows are in one database"
    assert declared.explain().chosen_because is None
    assert fingerprint(chosen.definition) == fingerprint(declared.definition)


def test_local_is_explained() -> None:
    index = IndexTable("i", on=[person.c.email])

    assert index.explain().mode == "local"
    assert repr(index) == "IndexTable('i', on person (email))"


def test_a_report_is_clean_only_without_any_difference() -> None:
    def report(missing: int, orphaned: int, different: int) -> VerifyReport:
        return VerifyReport("i", 1, missing, orphaned, different, ())

    assert report(0, 0, 0).clean
    assert not report(1, 0, 0).clean
    assert not report(0, 1, 0).clean
    assert not report(0, 0, 1).clean
