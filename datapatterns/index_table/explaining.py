"""How an index is kept, and why that way."""

from typing import Final

from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import Explanation

_REASONS: Final = {
    "local": "index rows live in the database of their rows; triggers write them in the"
    " transaction of every writer, raw SQL included, so they are never behind",
    "async": "index rows live in the database of their rows; a worker takes changes in after they"
    " were committed, raw SQL included, and writers only log them. A row may be missing until"
    " then, a wrong one is never returned",
    "reserve": "index rows are sharded by their own key, so a look-up asks one shard; sessions"
    " claim keys before they commit and forget them after it, so no row is ever missed, and an"
    " index row that leads nowhere is found out when it is read",
}


def explain_index(definition: IndexDefinition) -> Explanation:
    """Return how the index is kept, and why that way."""
    return Explanation(
        mode=definition.mode,
        reason=_REASONS[definition.mode],
        chosen_because=definition.chosen_because,
    )
