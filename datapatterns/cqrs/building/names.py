"""What PostgreSQL calls a constraint, an index or a sequence that nobody has named."""

from typing import Final

_IDENTIFIER_BYTES_MAX: Final = 63


def default_name(table: str, columns: str | None, label: str) -> str:
    """Return the name that PostgreSQL would give: its ``makeObjectName``.

    >>> default_name("product_sales", None, "pkey")
    'product_sales_pkey'
    >>> default_name("product_sales", "day_product", "key")
    'product_sales_day_product_key'

    What is too long is cut where it is longest:

    >>> default_name("t" * 60, "c" * 30, "fkey") == "t" * 28 + "_" + "c" * 29 + "_fkey"
    True
    """
    first, second = table.encode(), (columns or "").encode()
    overhead = len(label) + 1 + (columns is not None)
    lengths = [len(first), len(second)]
    while sum(lengths) + overhead > _IDENTIFIER_BYTES_MAX:
        lengths[0 if lengths[0] > lengths[1] else 1] -= 1
    parts = [_cut(first, lengths[0])]
    if columns is not None:
        parts.append(_cut(second, lengths[1]))
    return "_".join([*parts, label])


def numbered(name: str, number: int) -> str:
    """Return a name that PostgreSQL would try next if ``name`` is taken.

    >>> numbered("product_sales_pkey", 1)
    'product_sales_pkey1'
    >>> numbered("s" * 58 + "_pkey", 1) == "s" * 57 + "_pkey1"
    True
    """
    first, _, label = name.rpartition("_")
    return default_name(first, None, f"{label}{number}") if first else f"{name}{number}"


def _cut(name: bytes, length: int) -> str:
    # Between two characters, never within one.
    return name[:length].decode(errors="ignore")
