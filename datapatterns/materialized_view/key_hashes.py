"""Find the same key in two places, whichever of its parts are NULL.

``=`` calls no NULLs equal, and what does (IS NOT DISTINCT FROM) is neither hashed nor indexed.
The hash of a row is the same for keys that are equal, NULLs included; keys that merely share a
hash have to be harmless where it is used.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, func, literal_column


def key_hash(parts: Sequence[ColumnElement[Any]]) -> ColumnElement[int]:
    """Return the hash of a key, of 64 bits."""
    row = func.row(*parts)
    return func.hash_record_extended(row, literal_column("0"), type_=BigInteger())
