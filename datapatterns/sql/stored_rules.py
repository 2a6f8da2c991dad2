"""What the server says of a query whose plain view exists: it has analysed the query by then.

Which function each operator, cast and call stands for is in the stored rule, and so is each
relation. So nothing is guessed from names.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

_RULE = text("""
SELECT r.ev_action::text FROM pg_catalog.pg_rewrite r
WHERE r.ev_class = CAST(CAST(:definition AS regclass) AS oid)
""")
_FUNCTIONS = text("""
SELECT p.proname AS name, p.provolatile AS volatility, p.prokind = 'a' AS is_aggregate,
       n.nspname = 'pg_catalog' AS is_builtin,
       p.proargtypes::oid[] && ARRAY['float4'::regtype, 'float8'::regtype]::oid[] AS takes_floats
FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE p.oid = ANY (CAST(:oids AS oid[]))
ORDER BY p.proname
""")
_OPERATOR_FUNCTIONS = text("""
SELECT o.oprcode::oid FROM pg_catalog.pg_operator o WHERE o.oid = ANY (CAST(:operators AS oid[]))
""")
# What a cast by way of text calls: the output function of one type, the input function of another.
_TYPE_FUNCTIONS = text("""
SELECT p.oid FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_proc p ON p.oid = t.typoutput AND t.oid = ANY (CAST(:sources AS oid[]))
                          OR p.oid = t.typinput AND t.oid = ANY (CAST(:targets AS oid[]))
""")
_FUNCTION_ID = re.compile(r":(?:funcid|opfuncid|aggfnoid|winfnoid|elemfuncid) (\d+)")
_TEXT_CAST = re.compile(r"\{COERCEVIAIO :arg .*?:\w*type (\d+)")
_ROW_COMPARISON = re.compile(r"\{ROWCOMPARE\w* :\w+ \d+ :opnos \(o ([\d ]+)\)")
_RESULT_TYPE = re.compile(r":resulttype (\d+)")
_RELATION = re.compile(r":rtekind 0 :relid (\d+)")


def stored_rule(conn: Connection, definition: str) -> str:
    """Return the stored rule of the plain view ``definition``, as SQL writes its name."""
    rule: str = conn.execute(_RULE, {"definition": definition}).scalar_one()
    return rule


def functions_in(conn: Connection, rule: str) -> Sequence[Row[Any]]:
    """Return what a query calls, by name: also by its operators and casts.

    Rows of ``name``, ``volatility`` (as in ``pg_proc``), ``is_aggregate``, ``is_builtin`` and
    ``takes_floats``.
    """
    oids = {int(oid) for oid in _FUNCTION_ID.findall(rule)}
    if sources := [int(oid) for oid in _TEXT_CAST.findall(rule)]:
        targets = [int(oid) for oid in _RESULT_TYPE.findall(rule)]
        oids.update(conn.scalars(_TYPE_FUNCTIONS, {"sources": sources, "targets": targets}))
    if operators := [int(oid) for row in _ROW_COMPARISON.findall(rule) for oid in row.split()]:
        oids.update(conn.scalars(_OPERATOR_FUNCTIONS, {"operators": operators}))
    return conn.execute(_FUNCTIONS, {"oids": sorted(oids)}).all()


def relations_in(rule: str) -> Counter[int]:
    """Return the oids of the relations that a query reads, and how often it names each.

    Before PostgreSQL 16, the view of the rule is among them.
    """
    return Counter(int(oid) for oid in _RELATION.findall(rule))
