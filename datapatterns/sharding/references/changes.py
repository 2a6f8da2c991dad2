"""What a unit of work has done to rows that refer to others, or are referred to."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from datapatterns.sharding.references.declared import PlacedReference
from datapatterns.sharding.references.definition import Values


@dataclass(slots=True)
class Changes:
    """The net of it: what was there before and is there after does not count.

    Attributes:
        wanted: For each reference, what rows refer to now, and did not before.
        gone: For each reference, keys that its parent's table may have no more.
    """

    wanted: dict[PlacedReference, set[Values]] = field(default_factory=dict)
    gone: dict[PlacedReference, set[Values]] = field(default_factory=dict)

    def refer(self, reference: PlacedReference, values: Iterable[Values]) -> None:
        """Note what rows refer to; NULL in a part of it refers to nothing."""
        whole = {each for each in values if None not in each}
        if whole:
            self.wanted.setdefault(reference, set()).update(whole)

    def go(self, reference: PlacedReference, values: Iterable[Values]) -> None:
        """Note keys that rows had; nothing can refer to those with NULL."""
        whole = {each for each in values if None not in each}
        if whole:
            self.gone.setdefault(reference, set()).update(whole)

    def __bool__(self) -> bool:
        return bool(self.wanted or self.gone)
