"""The library's own tables."""

from datapatterns.errors.families import ConfigurationError, CorruptionError, UnavailableError


class MigrationNeededError(ConfigurationError):
    """The library's tables are older than the code that uses them.

    Attributes:
        schema: Where the tables live, or should.
        found: The revision they are at; None where there are none yet.
        needed: The revision this version of the library works with.
    """

    def __init__(self, schema: str, *, found: str | None, needed: str) -> None:
        where = f"are at revision {found}" if found else "do not exist yet"
        super().__init__(
            f"the tables in schema {schema!r} {where}, {needed} is needed;"
            " run: datapatterns migrate upgrade"
        )
        self.schema = schema
        self.found = found
        self.needed = needed


class SchemaManagedElsewhereError(ConfigurationError):
    """The library's tables belong to an application's own Alembic environment.

    Attributes:
        schema: Where the tables live.
        version_table: The Alembic version table that counts their revisions.
    """

    def __init__(self, schema: str, *, version_table: str) -> None:
        super().__init__(
            f"the tables in schema {schema!r} are migrated by the Alembic environment that counts"
            f" in {version_table}; run that one: alembic upgrade heads"
        )
        self.schema = schema
        self.version_table = version_table


class SchemaNameError(ConfigurationError):
    """The library's tables cannot live in a schema of this name.

    Attributes:
        name: The name that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} cannot name the library's schema; use 1 to 40 of a-z, 0-9 and _,"
            " not beginning with a digit or pg_, and no word of SQL"
        )
        self.name = name


class SchemaOccupiedError(ConfigurationError):
    """The schema holds tables that this library did not make.

    Attributes:
        schema: Where the library's tables should go.
        relations: Some of what is there, at most three names.
    """

    def __init__(self, schema: str, relations: tuple[str, ...]) -> None:
        super().__init__(
            f"schema {schema!r} holds tables of somebody else ({', '.join(relations)});"
            " choose another with --schema or DATAPATTERNS_SCHEMA"
        )
        self.schema = schema
        self.relations = relations


class UnknownRevisionError(ConfigurationError):
    """The library's tables, or a request, name a revision that this version does not know.

    Attributes:
        revision: The revision that was met.
        newest: The newest revision that is known.
    """

    def __init__(self, revision: str, *, newest: str) -> None:
        super().__init__(
            f"revision {revision!r} is unknown here, the newest is {newest}; if the tables are at"
            " it, a newer datapatterns made them: upgrade the package"
        )
        self.revision = revision
        self.newest = newest


class MigrationBlockedError(UnavailableError):
    """Somebody holds what the migration needs; nothing was changed.

    Attributes:
        holder: Who or what holds it.
        waited_seconds: How long the migration waited for it.
    """

    def __init__(self, holder: str, *, waited_seconds: float) -> None:
        super().__init__(
            f"gave up after {waited_seconds:g} s: {holder}; nothing was changed, try again"
        )
        self.holder = holder
        self.waited_seconds = waited_seconds


class SchemaDriftError(CorruptionError):
    """The library's tables are not what its migrations make.

    Attributes:
        schema: Where the tables live.
        differences: One line for each; ``-`` is missing, ``+`` is extra.
    """

    def __init__(self, schema: str, differences: tuple[str, ...]) -> None:
        shown = "; ".join(differences[:3])
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""  # noqa: PLR2004
        super().__init__(
            f"the tables in schema {schema!r} differ from what the migrations make: {shown}{more};"
            " put back what was changed by hand"
        )
        self.schema = schema
        self.differences = differences
