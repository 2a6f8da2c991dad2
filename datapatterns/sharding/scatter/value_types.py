"""Types of which Python and PostgreSQL have the same idea."""

from typing import Any

from sqlalchemy import types
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

# Exactly these classes: a subclass may compare otherwise, or change values on their way.
SMALL_INTEGERS = frozenset((types.SmallInteger, types.Integer, types.SMALLINT, types.INTEGER))
"""Those whose sums are `bigint`."""
_INTEGERS = SMALL_INTEGERS.union((types.BigInteger, types.BIGINT))
_FLOATS = (types.Float, types.FLOAT, types.REAL, types.Double, types.DOUBLE, types.DOUBLE_PRECISION)
SUMMABLE = _INTEGERS.union((types.Numeric, types.NUMERIC, types.DECIMAL))
"""Those whose sums do not depend on the order of adding."""
ORDERABLE = SUMMABLE.union(
    _FLOATS,
    (types.Boolean, types.BOOLEAN, types.Date, types.DATE, types.DateTime, types.TIMESTAMP),
    (postgresql.TIMESTAMP, types.Uuid, types.UUID, types.LargeBinary, postgresql.BYTEA),
)
"""Those that Python orders as PostgreSQL does."""
TEXTS = frozenset(
    (types.String, types.Text, types.Unicode, types.UnicodeText, types.VARCHAR, types.TEXT)
)


def is_orderable(type_: TypeEngine[Any]) -> bool:
    """Return whether Python orders values of ``type_`` as PostgreSQL does."""
    return type(type_) in ORDERABLE and getattr(type_, "as_uuid", True)
