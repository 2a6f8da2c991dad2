"""What a group declares is where its map begins; routing by it would miss what has changed."""

import re
from pathlib import Path

import pytest

import datapatterns

PACKAGE = Path(datapatterns.__file__).parent
BEGINS_THERE = {  # file -> why it looks at the declaration
    "sharding/citus/citus_cluster.py": "it tells a pin from what is declared",
    "sharding/citus/distributing.py": "it comments the SQL for another product, which has no map",
    "sharding/citus/fitness.py": "it checks what is declared, for a product that has no map",
    "sharding/definition.py": "it checks what is declared",
    "sharding/maps/initialising.py": "it writes down what is declared",
    "sharding/maps/loading.py": "it makes the strategy that routes of it, and of what is stored",
    "sharding/maps/map_change.py": "it tells a pin from what is declared",
    "sharding/seeing/linting.py": "it looks for an index, of which a hash needs one of its own",
}
DECLARED = re.compile(r"\bgroup\.strategy\b")
SOURCES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.glob("sharding/**/*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_nobody_routes_by_what_is_declared(source: Path) -> None:
    if str(source) not in BEGINS_THERE:
        assert not DECLARED.search((PACKAGE / source).read_text())
