"""What an application declares to be projected in SQL: the events it reads, its statements."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from sqlalchemy import Executable, FromClause, Table

from datapatterns.cqrs.definition import OnPoison, TableProjection
from datapatterns.errors import ProjectionDefinitionError


@dataclass(frozen=True, slots=True)
class StoredShape:
    """Events of one name in one version, as they are stored: nothing is lifted or decrypted.

    Attributes:
        name: As it was stored, whatever it is called today.
        version: Of the shape.
    """

    name: str
    version: int = 1


Reads: TypeAlias = tuple[type | StoredShape, ...]
"""Classes of events, or shapes as they are stored."""


class SetProjection(TableProjection):
    """A read model in tables that statements move on, each over a whole range of the log.

    Declared as ``class Revenue(SetProjection, into=RevenueRow, version=1, reads=(ItemScanned,))``,
    with a method `statements`. No event leaves the database, so it is several times as fast as a
    fold in Python; and it sees what is stored. An event whose data SQL cannot read as the class
    says, since it is of an older version, was renamed, has personal fields or is not plain JSON,
    stops the projection before it, whatever ``on_poison`` says.

    Attributes:
        tables: The mapped classes of its tables.
        reads: Which events it gets: classes of events as they are declared today; or a
            `StoredShape`, whose data it takes as they are.
        name: What its checkpoint is kept under; unless given, the class's name in snake case.
        version: To be raised with every change of the statements; then rebuild.
        on_poison: ``stop``, or ``skip`` to record an event that the statements fail at and pass
            it. Nothing can be parked, as nobody knows the keys of an event.
        is_splittable: As declared by ``additive``: the order in which events of different streams
            are applied does not matter, as where all is added up. Only then can it be split into
            segments, which are streams here: two of them may write one row.

    Raises:
        ProjectionDefinitionError: It reads nothing, has no `statements`, or its name, version or
            policy cannot be used.
    """

    reads: ClassVar[Reads]
    page_events: ClassVar[int] = 10_000

    def __init_subclass__(
        cls,
        *,
        into: type | tuple[type, ...],
        version: int,
        reads: Iterable[type | StoredShape],
        name: str | None = None,
        on_poison: OnPoison | None = None,
        additive: bool = False,
    ) -> None:
        super().__init_subclass__()
        cls.reads = tuple(reads)
        cls.is_splittable = additive
        cls._declare(name, version)
        cls._declare_tables(into, on_poison)
        if cls.on_poison == "park":
            raise ProjectionDefinitionError(
                cls.name,
                "nobody knows which keys an event of a statement concerns, so none can be parked;"
                " use on_poison stop or skip, or fold it in Python by a Projection",
            )
        if not cls.reads:
            raise ProjectionDefinitionError(cls.name, "say what it reads: reads=(ItemScanned, ...)")
        if not all(isinstance(one, type | StoredShape) for one in cls.reads):
            raise ProjectionDefinitionError(
                cls.name, "it reads classes of events or StoredShape values, nothing else"
            )
        if cls.handlers:
            raise ProjectionDefinitionError(
                cls.name, "its statements are all that it does; declare @on in a Projection"
            )
        if cls.statements is SetProjection.statements:
            raise ProjectionDefinitionError(cls.name, "declare its method statements()")

    def statements(
        self, events: FromClause, tables: Mapping[type, Table[Any]]
    ) -> Executable | Iterable[Executable]:
        """Return what a range of the log does: insert, update or delete, one or several in order.

        They are built once and run for each range. They must depend on ``events`` and ``tables``
        only, for a rebuild runs them again: on no clock, no chance, no other table that changes;
        nor on where a range ends. Ordering what is inserted by its key, as `upsert` does, keeps
        runners that overlap from waiting for each other.

        Args:
            events: The events of the range, to select from: ``position``, ``tenant``, ``category``
                and ``key`` of the stream, ``version`` in it, ``event_type``, ``schema_version``,
                ``data`` and ``metadata`` (JSON), ``recorded_at``, ``event_id``, ``tags``. What is
                not used costs nothing.
            tables: By mapped class the table to write; never the class's own, as another version
                is built in another table.
        """
        raise NotImplementedError
