"""No COMMIT of the library's own may get lost unnoticed."""

import ast
from pathlib import Path

import pytest

import datapatterns

PACKAGE = Path(str(datapatterns.__file__)).parent
SOURCES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
WITH_A_REASON = {  # path -> why a transaction may be opened there by SQLAlchemy's own means
    "aio.py": "the shell of transactions.py for asyncio",
    "transactions.py": "where it is done",
    "cqrs/reading/querying_async.py": "it only reads, and rolls back",
    "cqrs/tables/checksums.py": "of a savepoint; the transaction only reads",
    "cqrs/tables/poison.py": "of a savepoint; the transaction is the runner's",
    "materialized_view/forgetting_types.py": "of a savepoint; the transaction is the caller's",
    "sharding/atomic/committing.py": "a lost answer is found out there, by the primary's state",
    "sharding/atomic/parts.py": "on watched engines; which part commits first is decided there",
    "sharding/atomic/recovering.py": "what is lost is decided already, or again in the next round",
    "sharding/atomic/settling.py": "as in recovery: what is lost is decided, or is again",
    "sharding/broadcasting/repairing.py": "its parts commit as those of any atomic work",
    "sharding/engines.py": "a new connection introduces itself: it only reads",
}
SQLALCHEMYS_OWN = {"begin", "commit"}


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_transaction_of_the_library_is_committed_by_transactions_alone(source: Path) -> None:
    if str(source) in WITH_A_REASON or source.parts[0] == "testing":
        return

    assert list(_commits_in((PACKAGE / source).read_text())) == []


@pytest.mark.parametrize("source", sorted(WITH_A_REASON))
def test_the_exceptions_are_needed(source: str) -> None:
    assert list(_commits_in((PACKAGE / source).read_text()))


def _commits_in(source: str) -> list[str]:
    tree = ast.parse(source)
    opened = [
        item.context_expr
        for node in ast.walk(tree)
        if isinstance(node, ast.With | ast.AsyncWith)
        for item in node.items
    ]
    stated = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return [
        ast.unparse(call)
        for call in [*opened, *(s for s in stated if _method(s) == "commit")]
        if _method(call) in SQLALCHEMYS_OWN
    ]


def _method(node: ast.expr) -> str | None:
    if isinstance(node, ast.Await):
        node = node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr
    return None
