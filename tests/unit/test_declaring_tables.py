from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

import pytest

from datapatterns.sql.metadata import declared_once


def test_threads_that_come_first_declare_one_table() -> None:
    both_declare = Barrier(2)
    declarations: list[str] = []

    @declared_once
    def declare(schema: str) -> object:
        declarations.append(schema)
        with pytest.raises(BrokenBarrierError):
            both_declare.wait(timeout=0.2)
        return object()

    with ThreadPoolExecutor(2) as executor:
        tables = set(executor.map(declare, ["shop", "shop"]))

    assert (len(tables), declarations) == (1, ["shop"])


def test_each_schema_has_its_own() -> None:
    @declared_once
    def declare(schema: str) -> str:
        return f"table of {schema}"

    assert [declare(schema) for schema in ("a", "b", "a")] == [
        "table of a",
        "table of b",
        "table of a",
    ]
