"""SQL that a revision shows on many lines is the SQL that was declared, to the last character."""

import re

from alembic.autogenerate import render_python_code
from alembic.operations.ops import UpgradeOps
from hypothesis import given
from hypothesis import strategies as st

import datapatterns.alembic.rendering  # noqa: F401 -- so that operations are written
from datapatterns import alembic
from datapatterns.alembic import Blueprint, CreateMaterializedViewOp, Source, Strategy
from datapatterns.materialized_view.names import view_names
from datapatterns.materialized_view.written_sql import canonical, is_plain, renamed, tokens_of

words = st.sampled_from([
    *("SELECT", "FROM", "WHERE", "LEFT", "OUTER", "JOIN", "UNION ALL", "a", "s.a.x", "s.a_stored"),
    *("%", ":x", "::text", "+", "(", ")", "[1]", "é", "a$b", ",", "date'2020-01-01'", "E'\\''"),
])  # fmt: skip
inside = st.text(st.sampled_from(" \n\t'\"\\a:%$-{}é𝄞"), max_size=12)
texts = inside.map(lambda t: "'" + t.replace("'", "''") + "'")
identifiers = inside.map(lambda t: '"' + (t or "x").replace('"', '""') + '"')
oddities = st.sampled_from(["-- x\n", "/* ' */", "$$ ' $$", "'", "'a'\n'b'"])
usual = st.lists(st.one_of(words, texts, identifiers), min_size=1, max_size=12)
any_parts = st.lists(st.one_of(words, texts, identifiers, oddities), min_size=1, max_size=12)
spaces = st.text(st.sampled_from(" \n\t"), min_size=1, max_size=3)


def blueprint(statement: str) -> Blueprint:
    return Blueprint(
        columns=("week", 'a "quoted" one'),
        strategy=Strategy.COUNTING,
        reason="it's so",
        definition=statement,
        fresh=statement,
        stored=("key_0",),
        key=("key_0",),
        key_is_unique=True,
        shown=statement,
        current=statement,
        sources=(Source('"line"', ("week",)),),
        requirements=(),
    )


@given(any_parts)
def test_a_revision_gives_back_what_was_written_into_it(parts: list[str]) -> None:
    written = blueprint(" ".join(parts))
    code = render_python_code(UpgradeOps([CreateMaterializedViewOp("v", "s", written)]))
    read: list[object] = []

    class Recorder:
        def create_materialized_view(self, *_: object, blueprint: object, **__: object) -> None:
            read.append(blueprint)

    exec(f"def f():\n    {code}\nf()", vars(alembic) | {"op": Recorder()})  # noqa: S102

    assert read == [written]


@given(usual, st.data())
def test_white_space_makes_no_difference(parts: list[str], data: st.DataObject) -> None:
    one_line = " ".join(parts)
    many = "".join(data.draw(spaces) + part for part in parts)

    if is_plain(many):
        assert canonical(many) == canonical(one_line) == one_line.strip()


@given(any_parts)
def test_tokens_are_all_of_the_statement(parts: list[str]) -> None:
    statement = "".join(parts)

    assert "".join(token.text for token in tokens_of(statement)) == statement
    assert canonical(canonical(statement)) == canonical(statement)


@given(usual)
def test_a_statement_under_other_names_and_back_is_the_same(parts: list[str]) -> None:
    old = view_names("s", "a")
    new = old.next
    written = blueprint(" ".join(parts))

    there = written.under(old, new)

    assert there.under(new, old) == written
    assert ("s.a_stored" in parts) == bool(re.search(r"s\.a__next_stored", there.definition))


def test_only_relations_of_the_schema_are_renamed() -> None:
    statement = "SELECT s.a.x, 's.a', \"s.a\" FROM s.a, x.s.a, t.a, s.a_b, a"

    assert renamed(statement, "s", {"a": "c"}) == (
        "SELECT s.c.x, 's.a', \"s.a\" FROM s.c, x.s.a, t.a, s.a_b, a"
    )
