"""What a transaction changes of an index in the end, out of what its statements did."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Texts: TypeAlias = tuple[str, ...]
"""Values of columns, as the server writes them."""

Included: TypeAlias = tuple[str | None, ...]
"""Values of the included columns, likewise."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """That a row is found by a key, both as texts.

    Only types of which equal values are written alike can be keys, so texts can be compared.
    """

    key: Texts
    row: Texts


@dataclass(frozen=True, slots=True)
class StatementChanges:
    """What one statement did.

    Attributes:
        gone: Entries that rows no longer have.
        come: Entries that rows have since.
        touched: Entries that stay, but carry other values.
    """

    gone: Collection[Entry]
    come: Collection[Entry]
    touched: Collection[Entry]

    @property
    def rows(self) -> set[Texts]:
        """Return the rows that it is about."""
        return {entry.row for part in (self.gone, self.come, self.touched) for entry in part}


@dataclass(frozen=True, slots=True)
class NetChanges:
    """What is left to do for an index.

    Attributes:
        added: To be claimed before the commit, with their included columns.
        removed: To be forgotten after it.
        refreshed: Whose included columns are to be read again after it.
    """

    added: Mapping[Entry, Included]
    removed: frozenset[Entry]
    refreshed: frozenset[Entry]


def net_changes(
    statements: Iterable[StatementChanges], present: Mapping[Entry, Included]
) -> NetChanges:
    """Return what the statements of a transaction come to.

    What rows have in the end is looked at, not reckoned: triggers of the application write between
    a statement and the trigger that notes it, so the notes need not be in the order of the writes.
    An entry that went and came back is claimed anew: that costs one claim, and needs no order.

    Args:
        statements: In the order of their notes.
        present: The entries that the rows have now, with their included columns.
    """
    first_gone: dict[Entry, bool] = {}
    come: set[Entry] = set()
    touched: set[Entry] = set()
    for statement in statements:
        for entry in statement.gone:
            first_gone.setdefault(entry, True)
        for entry in statement.come:
            first_gone.setdefault(entry, False)
        come.update(statement.come)
        touched.update(statement.touched)
    # What came first and is gone was never committed: nobody can have found it.
    removed = {entry for entry, was_there in first_gone.items() if was_there} - present.keys()
    return NetChanges(
        added={entry: included for entry, included in present.items() if entry in come},
        removed=frozenset(removed),
        refreshed=frozenset((touched & present.keys()) - come),
    )


def doubled(added: Iterable[Entry]) -> Texts | None:
    """Return a key that two rows are to have, the least one; None if there is none."""
    rows: dict[Texts, Texts] = {}
    return min(
        (entry.key for entry in added if rows.setdefault(entry.key, entry.row) != entry.row),
        default=None,
    )


def handed_over(added: Iterable[Entry], removed: Iterable[Entry]) -> frozenset[Texts]:
    """Return the keys that one row gives up and another takes."""
    return frozenset({entry.key for entry in added} & {entry.key for entry in removed})
