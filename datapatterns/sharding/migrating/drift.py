"""Whether shards have the same tables, and what differs by name."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, slots=True, order=True)
class CatalogPart:
    """One thing that a table or another object consists of.

    Attributes:
        owner: The object, with its schema.
        kind: ``column``, ``constraint``, ``index``, ``trigger``, ``definition`` ...
        name: Its name; empty where there can be only one.
        line: All that can differ.
    """

    owner: str
    kind: str
    name: str
    line: str


@dataclass(frozen=True, slots=True)
class Catalog:
    """What there is outside the library's schema.

    Left out are objects of extensions, and triggers that moves of buckets make.

    Attributes:
        parts: All that should be alike on all shards.
        column_orders: The columns of each table in their order, which may differ.
    """

    parts: frozenset[CatalogPart]
    column_orders: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Return a digest that two shards with the same tables share."""
        # Lengths, so that no name or default can pretend to be two parts.
        lines = (
            f"{len(text)}:{text}"
            for part in sorted(self.parts)
            for text in (part.owner, part.kind, part.name, part.line)
        )
        return sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SchemaDifference:
    """What one shard has otherwise than most.

    Attributes:
        owner: The table or other object, with its schema.
        kind: What of it: ``column``, ``constraint``, ``index``, ``trigger`` ...; ``object`` if it
            is missing, or too much, as a whole.
        name: The column's or index's name; empty where there can be only one.
        expected: What most shards have; None for nothing.
        found: What this one has; None for nothing.
    """

    owner: str
    kind: str
    name: str
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        """Say it in a line."""
        what = self.owner if self.kind == "object" else f"{self.owner}: {self.kind} {self.name}"
        if self.found is None:
            return f"{what.rstrip()} is missing"
        if self.expected is None:
            return f"{what.rstrip()} is not on the others"
        return f"{what.rstrip()} is {self.found!r}, on the others {self.expected!r}"


def drift(expected: Catalog, found: Catalog) -> tuple[SchemaDifference, ...]:
    """Return what differs, sorted; of a table that is missing, its columns are no further news."""
    before, after = _by_place(expected.parts), _by_place(found.parts)
    lost = {place[0] for place in before} - {place[0] for place in after}
    added = {place[0] for place in after} - {place[0] for place in before}
    differences = [
        SchemaDifference(owner, kind, name, before.get(place), after.get(place))
        for place in sorted({*before, *after})
        for owner, kind, name in [place]
        if before.get(place) != after.get(place) and owner not in lost | added
    ]
    differences += [SchemaDifference(owner, "object", "", owner, None) for owner in lost]
    differences += [SchemaDifference(owner, "object", "", None, owner) for owner in added]
    return tuple(sorted(differences, key=lambda each: (each.owner, each.kind, each.name)))


def other_orders(expected: Catalog, found: Catalog) -> tuple[str, ...]:
    """Return the tables that have the same columns in another order, which does no harm."""
    return tuple(
        sorted(
            owner
            for owner, columns in found.column_orders.items()
            if columns != expected.column_orders.get(owner, columns)
            and sorted(columns.split(", ")) == sorted(expected.column_orders[owner].split(", "))
        )
    )


def most_common(catalogs: Iterable[Catalog]) -> Catalog | None:
    """Return what most shards have; of two that are as common, what comes first."""
    found = list(catalogs)
    counted = Counter(catalog.fingerprint for catalog in found)
    return max(found, key=lambda catalog: counted[catalog.fingerprint], default=None)


def _by_place(parts: Iterable[CatalogPart]) -> dict[tuple[str, str, str], str]:
    return {(part.owner, part.kind, part.name): part.line for part in parts}
