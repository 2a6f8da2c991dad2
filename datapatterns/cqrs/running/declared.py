"""What an application declares to be run."""

from collections.abc import Sequence

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.errors import ProjectionDefinitionError


def refuse_twins(declared: Sequence[type[AnyProjection]]) -> None:
    """Make sure that each version of a projection is declared once.

    Raises:
        ProjectionDefinitionError: One is not.
    """
    known: dict[tuple[str, int], type[AnyProjection]] = {}
    for projection in declared:
        twin = known.setdefault((projection.name, projection.version), projection)
        if twin is not projection:
            raise ProjectionDefinitionError(
                projection.name,
                f"version {projection.version} is declared by {twin.__qualname__} and"
                f" {projection.__qualname__}; give one of them another name, or the next version",
            )


def find_declared(
    declared: Sequence[type[AnyProjection]], name: str, version: int | None
) -> type[AnyProjection]:
    """Return what is declared under ``name``, the newest version unless one is given.

    Raises:
        ProjectionDefinitionError: Nothing is.
    """
    known = {p.version: p for p in declared if p.name == name}
    if not known:
        names = ", ".join(sorted({p.name for p in declared})) or "none is"
        raise ProjectionDefinitionError(name, f"it is not declared; those that are: {names}")
    if version is None:
        return known[max(known)]
    if version not in known:
        versions = ", ".join(map(str, sorted(known)))
        raise ProjectionDefinitionError(
            name, f"version {version} is not declared; those that are: {versions}"
        )
    return known[version]
