"""Which functions counting may call: the server's own, of which each answers for every value.

What a query calls is read from the stored rule of its plain view, where the server has written
which function each name, operator and cast stands for. So a function of the same name in another
schema is not taken for one of these; nor is a cast that may fail, such as one to a narrower type.
"""

import re

from psycopg import sql
from sqlalchemy import Connection, text

from datapatterns.materialized_view.names import ViewNames
from datapatterns.sql.stored_rules import stored_rule

# Operators of a B-tree class compare any two values, or else the index would fail. Only
# superusers make such classes, so extensions' comparisons are let through as well.
_OTHERS = text("""
SELECT p.oid::regprocedure::text FROM pg_catalog.pg_proc p
WHERE p.oid = ANY (CAST(:oids AS oid[]))
AND NOT (p.pronamespace = 'pg_catalog'::regnamespace
         AND p.proname || '(' || oidvectortypes(p.proargtypes) || ')' = ANY (:trusted))
AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_operator o
    JOIN pg_catalog.pg_amop a ON a.amopopr IN (o.oid, o.oprnegate)
    JOIN pg_catalog.pg_am m ON m.oid = a.amopmethod AND m.amname = 'btree'
    WHERE o.oprcode = p.oid)
ORDER BY 1
""")
_FUNCTION_ID = re.compile(r":(?:funcid|opfuncid|aggfnoid|winfnoid|elemfuncid) (\d+)")
_BY_WAY_OF_TEXT = "{COERCEVIAIO "
_CHECKED = "{COERCETODOMAIN "

_TIMESTAMP = "timestamp without time zone"
_TEXTS = ("lower", "upper", "btrim", "ltrim", "rtrim", "length", "char_length", "character_length")
_INTEGERS = ("smallint", "integer", "bigint")
_WIDENING = (
    "int4(smallint)", "int8(smallint)", "int8(integer)",
    "numeric(smallint)", "numeric(integer)", "numeric(bigint)",
    "float8(smallint)", "float8(integer)", "float8(real)",
    "text(character)", "text(boolean)", "text(name)",
)  # fmt: skip
# Counting does these in numerics, which do not overflow: see `totality`.
_WIDENED = (
    "int2um(smallint)", "int4um(integer)", "int8um(bigint)",
    *(f"int{a}{b}{name}({first}, {second})"
      for name in ("pl", "mi", "mul")
      for a, first in zip("248", _INTEGERS, strict=True)
      for b, second in zip("248", _INTEGERS, strict=True)),
    *(f"int{a}{name}({kind}, {kind})"
      for name in ("pl", "mi", "mul")
      for a, kind in zip("248", _INTEGERS, strict=True)),
    "numeric_uminus(numeric)",
    *(f"numeric_{name}(numeric, numeric)" for name in ("add", "sub", "mul")),
)  # fmt: skip
_AGGREGATES = (
    "count()", 'count("any")', "bool_and(boolean)", "bool_or(boolean)", "every(boolean)",
    *(f"{name}({kind})" for name in ("sum", "avg") for kind in (*_INTEGERS, "numeric")),
)  # fmt: skip
_TIMES = (
    f"date({_TIMESTAMP})",
    f"date_trunc(text, {_TIMESTAMP})",
    "extract(text, date)",
    f"extract(text, {_TIMESTAMP})",
    "timezone(text, timestamp with time zone)",
)
_TRUSTED = [*_AGGREGATES, *_TIMES, *_WIDENED, *_WIDENING, *(f"{name}(text)" for name in _TEXTS)]


def untrusted_call(conn: Connection, names: ViewNames) -> str | None:
    """Return, for people, something that the view's query calls and counting may not.

    The plain view of the query is there already.
    """
    definition = sql.Identifier(names.schema, names.definition).as_string(None)
    rule = stored_rule(conn, definition)
    if _BY_WAY_OF_TEXT in rule or _CHECKED in rule:
        return "a cast that some values may not survive"
    oids = sorted({int(oid) for oid in _FUNCTION_ID.findall(rule)})
    other = conn.scalars(_OTHERS, {"oids": oids, "trusted": _TRUSTED}).first()
    return None if other is None else f"{other}, which counting does not know to be total"
