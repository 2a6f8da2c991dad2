"""What Redis should hold, in memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from datapatterns.cqrs.in_redis.redis_changes import Outcome
from datapatterns.cqrs.in_redis.redis_keys import Place, Structure


@dataclass(frozen=True, slots=True)
class RedisContent:
    """The structures of a read model that are not empty, and what they hold."""

    structures: dict[Structure, dict[str, str]] = field(default_factory=dict)

    def stored(self, places: Iterable[Place]) -> dict[Place, str]:
        """Return what ``places`` hold; those that are empty are left out."""
        return {
            place: held[place.field]
            for place in places
            if place.field in (held := self.structures.get(place.structure, {}))
        }

    def take(self, outcome: Outcome) -> None:
        """Hold what a page makes of it."""
        for structure in outcome.dropped:
            self.structures.pop(structure, None)
        for place, value in outcome.places.items():
            held = self.structures.setdefault(place.structure, {})
            if value is None:
                held.pop(place.field, None)
            else:
                held[place.field] = value
            if not held:
                del self.structures[place.structure]

    def places(self) -> dict[Place, str]:
        """Return what each place holds."""
        return {
            Place(*structure, member): value
            for structure, held in self.structures.items()
            for member, value in held.items()
        }
