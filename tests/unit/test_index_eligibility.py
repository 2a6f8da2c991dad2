from dataclasses import replace

import pytest

from datapatterns.index_table.eligibility import (
    ColumnFacts,
    TableFacts,
    column_problems,
    table_problems,
)

PLAIN = TableFacts(
    kind="r",
    persistence="p",
    in_hierarchy=False,
    row_security=False,
    subscribed=False,
    primary_key=["id"],
    primary_key_deferrable=False,
    virtual_columns=["twice"],
)
COLUMN = ColumnFacts(
    name="email",
    type_sql="text",
    type_name="text",
    is_enum=False,
    collation_sql='pg_catalog."default"',
    deterministic=True,
)


def problems(facts: TableFacts) -> list[str]:
    return list(table_problems(facts, primary_key=["id"], used_columns=["id", "email"]))


def test_a_plain_table_can_have_an_index_table() -> None:
    assert not problems(PLAIN)
    assert not list(column_problems(COLUMN))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (replace(PLAIN, kind="p"), "partitioned"),
        (replace(PLAIN, in_hierarchy=True), "partitioned and inherited"),
        (replace(PLAIN, kind="v"), "only a table"),
        (replace(PLAIN, persistence="u"), "unlogged"),
        (replace(PLAIN, persistence="t"), "temporary"),
        (replace(PLAIN, row_security=True), "row-level security"),
        (replace(PLAIN, subscribed=True), "logical replication"),
        (replace(PLAIN, primary_key=["id", "tenant_id"]), "make them agree"),
        (replace(PLAIN, primary_key_deferrable=True), "not deferrable"),
        (replace(PLAIN, virtual_columns=["email"]), "STORED"),
    ],
)
def test_a_table_whose_changes_could_be_missed_is_refused(facts: TableFacts, reason: str) -> None:
    assert [reason in problem for problem in problems(facts)] == [True]


def test_keys_under_which_different_strings_are_equal_are_refused() -> None:
    assert "citext" in next(column_problems(replace(COLUMN, type_name="citext")))
    assert "collation" in next(column_problems(replace(COLUMN, deterministic=False)))


@pytest.mark.parametrize(
    "facts", [replace(COLUMN, deterministic=False), replace(COLUMN, type_name="numeric")]
)
def test_types_whose_equal_values_may_differ_are_known(facts: ColumnFacts) -> None:
    assert facts.loosely_equal


@pytest.mark.parametrize("facts", [COLUMN, replace(COLUMN, type_name="mood", is_enum=True)])
def test_types_whose_equal_values_are_the_same_are_known(facts: ColumnFacts) -> None:
    assert not facts.loosely_equal
