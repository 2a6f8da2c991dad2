"""Migrations of all shards."""

from collections.abc import Mapping

from datapatterns.errors.families import ConfigurationError, CorruptionError


class AlembicEnvironmentError(ConfigurationError):
    """An application's Alembic environment cannot be run on shards as it is."""

    def __init__(self, advice: str) -> None:
        super().__init__(f"Alembic environment: {advice}")
        self.advice = advice


class ShardMigrationFailedError(ConfigurationError):
    """A migration failed on a shard; those after it are as they were.

    Attributes:
        shard: Where.
        said: What went wrong.
        states: How far each shard is: ``pending``, ``running``, ``done`` or ``failed``.
    """

    def __init__(self, shard: str, said: str, states: Mapping[str, str]) -> None:
        super().__init__(
            f"the migration failed on shard {shard!r}: {said};"
            " mend it and run the same again, which goes on where this stopped"
        )
        self.shard = shard
        self.said = said
        self.states = dict(states)


class ShardBehindError(ConfigurationError):
    """A shard's tables are older than the code needs.

    Attributes:
        shard: Which one.
        found: The revisions that it is at.
        needed: The revision that the code names as its oldest.
    """

    def __init__(self, shard: str, *, found: tuple[str, ...], needed: str) -> None:
        super().__init__(
            f"shard {shard!r} is at revision {', '.join(found) or 'none'}, this code needs"
            f" {needed}; run: datapatterns shards migrate"
        )
        self.shard = shard
        self.found = found
        self.needed = needed


class ShardDriftError(CorruptionError):
    """Shards do not have the same tables.

    Attributes:
        shard: The one that differs from the others.
        differences: One line for each.
    """

    def __init__(self, shard: str, differences: tuple[str, ...]) -> None:
        shown = "; ".join(differences[:3])
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""  # noqa: PLR2004
        super().__init__(
            f"the tables of shard {shard!r} differ from the others': {shown}{more};"
            " put right what was changed by hand, on this shard or on the others"
        )
        self.shard = shard
        self.differences = differences
