"""Plan statements of one shape once: what is sent, and who merges the answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from datapatterns.sharding.routing.footprint import Footprint
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.scatter.bounds import bounds_of
from datapatterns.sharding.scatter.scatter_plan import ScatterPlan
from datapatterns.sharding.scatter.selected import AnySelect, selects_only_columns

_SHAPES_MAX = 1_000
T = TypeVar("T")

# Finding out which values are equal takes time that grows as their square does.
_VALUES_MAX = 40


@dataclass(frozen=True, slots=True)
class PlannedShape:
    """What statements of one shape have in common.

    Attributes:
        plan: For any of them.
        footprint: What it reads.
        names: What the plan calls the values of statements, in their order.
        made: What was made of the plan, by what it is for.
    """

    plan: ScatterPlan
    footprint: Footprint
    names: tuple[str, ...]
    made: dict[object, Any] = field(default_factory=dict)

    def once(self, purpose: object, make: Callable[[], T]) -> T:
        """Return what ``make`` makes of the plan; made once, or twice if two threads come first."""
        if purpose not in self.made:
            self.made[purpose] = make()
        found: T = self.made[purpose]
        return found


@dataclass(frozen=True, slots=True)
class Planned:
    """How to answer a statement.

    Attributes:
        plan: For it, or for one of the same shape.
        footprint: What that one reads.
        parameters: The values to execute the plan's statements with.
        shape: What it has in common with others, if it selects columns only and can be remembered.
    """

    plan: ScatterPlan
    footprint: Footprint
    parameters: Parameters
    shape: PlannedShape | None = None


class PlanCache:
    """Remembers plans by the shape of statements.

    The shape is what SQLAlchemy caches compiled statements by, with the bounds, and with which of
    the values are equal: whether an expression of the ORDER BY is one that is selected depends on
    the values in both. Statements that select entities are planned each time: their objects' loads
    go by the statement that the caller has.
    """

    def __init__(self) -> None:
        self._shapes: dict[tuple[Any, ...], PlannedShape] = {}

    def of(
        self,
        statement: AnySelect,
        parameters: Parameters,
        make: Callable[[], tuple[ScatterPlan, Footprint]],
        *,
        streaming: bool,
    ) -> Planned:
        """Return the plan for ``statement``, which ``make`` makes if it has a new shape."""
        key = statement._generate_cache_key()  # noqa: SLF001 -- there is no public name
        if key is None or len(key.bindparams) > _VALUES_MAX:
            return Planned(*make(), parameters)
        values = [parameters.get(bind.key, bind.effective_value) for bind in key.bindparams]
        shape = (key.key, _equal_ones(values), bounds_of(statement, parameters), streaming)
        found = self._shapes.get(shape)
        if found is None:
            plan, footprint = make()
            if not selects_only_columns(statement):
                return Planned(plan, footprint, parameters)
            names = tuple(bind.key for bind in key.bindparams)
            found = PlannedShape(plan, footprint, names)
            self._remember(shape, found)
        named = {
            name: value
            for name, value, bind in zip(found.names, values, key.bindparams, strict=True)
            if bind.key in parameters or not bind.required  # SQLAlchemy says what is missing
        }
        return Planned(found.plan, found.footprint, {**parameters, **named}, found)

    def _remember(self, shape: tuple[Any, ...], planned: PlannedShape) -> None:
        while len(self._shapes) >= _SHAPES_MAX:
            # Another thread may have dropped the oldest one just now.
            self._shapes.pop(next(iter(self._shapes)), None)
        self._shapes[shape] = planned


def _equal_ones(values: Sequence[Any]) -> tuple[int, ...]:
    """Return for each value which is the first that equals it."""
    return tuple(
        next(place for place, other in enumerate(values) if other is value or other == value)
        for value in values
    )
