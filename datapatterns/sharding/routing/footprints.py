"""Look into statements of one shape once: finding the key costs, hashing it does not."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import BindParameter
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.sharding.routing.footprint import Footprint, footprint_of
from datapatterns.sharding.routing.guarded import GuardedShape
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.routing.placements import Placements

_SHAPES_MAX = 1_000


@dataclass(slots=True)
class Shape:
    """What statements of one shape have in common.

    Attributes:
        footprint: What they read.
        positions: Where in any of them its parameters stand.
        guarded: The shape of any of them with a guard.
    """

    footprint: Footprint
    positions: tuple[tuple[str, int], ...]
    guarded: GuardedShape | None = None


class Looked(NamedTuple):
    """What is known of a statement.

    Attributes:
        footprint: What it reads.
        values: The parameters to ask that footprint with.
        shape: What it has in common with others, if these were seen before.
    """

    footprint: Footprint
    values: Parameters
    shape: Shape | None


class Footprints:
    """Remembers what statements of one shape read.

    The shape is what SQLAlchemy caches compiled statements by: equal shapes differ in the values
    of parameters only, and these stand in the same order.
    """

    def __init__(self, placements: Placements) -> None:
        self._placements = placements
        self._shapes: dict[tuple[Any, ...], Shape] = {}

    def of(self, statement: SelectBase, parameters: Parameters) -> tuple[Footprint, Parameters]:
        """Return what ``statement`` reads, with the parameters to ask that footprint with.

        Raises:
            UnroutableStatementError: As `footprint_of` does.
        """
        footprint, values, _ = self.look(statement, parameters)
        return footprint, values

    def look(self, statement: SelectBase, parameters: Parameters) -> Looked:
        """Return what is known of ``statement``.

        Raises:
            UnroutableStatementError: As `footprint_of` does.
        """
        key = statement._generate_cache_key()  # noqa: SLF001 -- there is no public name
        if key is None:  # SQLAlchemy cannot cache it either
            return Looked(footprint_of(statement, self._placements), parameters, None)
        shape = self._shapes.get(key.key)
        if shape is None:
            footprint = footprint_of(statement, self._placements)
            positions = _positions(footprint, key.bindparams)
            if positions is not None:
                self._remember(key.key, Shape(footprint, positions))
            return Looked(footprint, parameters, None)
        binds = key.bindparams
        values = dict(parameters) if parameters else {}
        for name, position in shape.positions:
            bind = binds[position]
            own = bind.effective_value
            # As nearly always, nothing is passed: a look-up less.
            values[name] = parameters.get(bind.key, own) if parameters else own
        return Looked(shape.footprint, values, shape)

    def _remember(self, key: tuple[Any, ...], shape: Shape) -> None:
        while len(self._shapes) >= _SHAPES_MAX:
            # Another thread may have dropped the oldest one just now.
            self._shapes.pop(next(iter(self._shapes)), None)
        self._shapes[key] = shape


def _positions(
    footprint: Footprint, binds: Iterable[BindParameter[Any]]
) -> tuple[tuple[str, int], ...] | None:
    """Return where each parameter of the conditions stands; None if one is not among them."""
    places = {bind.key: place for place, bind in enumerate(binds)}
    names = {
        bind.key
        for block in footprint.blocks
        for condition in (*block.conditions, *block.outer_conditions)
        for bind in condition.binds
    }
    if not names.issubset(places):
        return None
    return tuple((name, places[name]) for name in sorted(names))
