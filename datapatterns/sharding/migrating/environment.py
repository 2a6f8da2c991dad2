"""An application's Alembic environment, run on one shard."""

import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from threading import Lock
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Column, Connection, MetaData, Table, Text, inspect, select

from datapatterns.errors import AlembicEnvironmentError
from datapatterns.sql.migration_status import BASE, Revision

HEADS = "heads"

Check = Callable[[MigrationContext], None]
Steps = Callable[[Any, MigrationContext], list[Any]]

_STEPS = re.compile(r"[+-]\d+$")

# Alembic keeps the environment that runs in global variables.
_one_at_a_time = Lock()


@dataclass(frozen=True, slots=True)
class AlembicEnvironment:
    """Where an application's own migrations are.

    Its ``env.py`` must migrate what it is given: the `Connection` in
    ``context.config.attributes["connection"]``, or else ``sqlalchemy.url``, as Alembic's template
    does. One that finds its database elsewhere is stopped before it changes anything.

    Attributes:
        config: ``alembic.ini``, or ``pyproject.toml``.
        section: Its section, as ``alembic --name``.
        arguments: What ``env.py`` asks `get_x_argument` for, as ``alembic -x``.
        version_table: Where it counts, if ``env.py`` says otherwise than Alembic.
        version_schema: The schema of that table.
        min_revision: What the code needs: a cluster refuses a shard that is below. None for any.
    """

    config: str = "alembic.ini"
    section: str = "alembic"
    arguments: tuple[str, ...] = ()
    version_table: str = "alembic_version"
    version_schema: str | None = None
    min_revision: str | None = None

    def located(self) -> "AlembicEnvironment":
        """Return the same with a whole path, for a process that may be elsewhere."""
        return replace(self, config=str(Path(self.config).absolute()))

    def alembic_config(self, url: URL | None = None, printed: StringIO | None = None) -> Config:
        """Return Alembic's own configuration, for the database at ``url``.

        Raises:
            AlembicEnvironmentError: There is no such file.
        """
        path = Path(self.config)
        if not path.is_file():
            raise AlembicEnvironmentError(f"there is no {path}; name the file that alembic uses")
        is_toml = path.suffix == ".toml"
        config = Config(
            file_=None if is_toml else path,
            toml_file=path if is_toml else None,
            ini_section=self.section,
            output_buffer=printed,
            stdout=StringIO(),
            cmd_opts=Namespace(x=list(self.arguments)),
        )
        if url is not None:
            shown = url.render_as_string(hide_password=False)
            config.set_main_option("sqlalchemy.url", shown.replace("%", "%%"))
        return config

    def revisions(self) -> "Revisions":
        """Read the revisions.

        Raises:
            AlembicEnvironmentError: They cannot be read.
        """
        try:
            return Revisions(ScriptDirectory.from_config(self.alembic_config()))
        except CommandError as error:
            raise AlembicEnvironmentError(str(error)) from error

    def heads_in(self, conn: Connection) -> frozenset[str]:
        """Return at which revisions a database stands; none where it was never migrated."""
        table = Table(
            self.version_table,
            MetaData(),
            Column("version_num", Text),
            schema=self.version_schema,
        )
        if not inspect(conn).has_table(table.name, schema=table.schema):
            return frozenset()
        return frozenset(conn.scalars(select(table.c.version_num)))

    def run(self, conn: Connection, url: URL, *, revision: str, down: bool, check: Check) -> None:
        """Run ``env.py`` on the database of ``conn``, up or down to ``revision``.

        Args:
            conn: In no transaction; what a block in autocommit mode needs.
            url: The same database, for an ``env.py`` that connects by itself.
            revision: Where to.
            down: Whether to go back to it.
            check: Is asked before anything is changed, and may refuse.
        """
        config = self.alembic_config(url)
        config.attributes["connection"] = conn
        script = ScriptDirectory.from_config(config)

        def steps(heads: Any, context: MigrationContext) -> list[Any]:  # noqa: ANN401 -- Alembic's
            self._check_count(context)
            check(context)
            if down:
                return script._downgrade_revs(revision, heads)  # noqa: SLF001 -- as its commands do
            return script._upgrade_revs(revision, heads)  # noqa: SLF001

        with _one_at_a_time:
            # Once without steps: otherwise a version table would be made in a wrong database.
            with EnvironmentContext(config, script, fn=_none(steps), dont_mutate=True):
                script.run_env()
            conn.rollback()  # in a transaction that it finds, Alembic commits nothing
            with EnvironmentContext(config, script, fn=steps, destination_rev=revision):
                script.run_env()

    def sql(self, *, start: Sequence[str], revision: str, down: bool) -> str:
        """Return what would be run; asks no database."""
        printed = StringIO()
        config = self.alembic_config(printed=printed)
        script = ScriptDirectory.from_config(config)
        begin = ",".join(start) or BASE

        def steps(heads: Any, _context: MigrationContext) -> list[Any]:  # noqa: ANN401
            if down:
                return script._downgrade_revs(revision, heads)  # noqa: SLF001
            return script._upgrade_revs(revision, heads)  # noqa: SLF001

        with (
            _one_at_a_time,
            EnvironmentContext(
                config,
                script,
                fn=steps,
                as_sql=True,
                starting_rev=begin,
                destination_rev=revision,
            ),
        ):
            script.run_env()
        return printed.getvalue()

    def _check_count(self, context: MigrationContext) -> None:
        found = context.version_table, context.version_table_schema
        if found != (self.version_table, self.version_schema):
            raise AlembicEnvironmentError(
                f"env.py counts in {'.'.join(filter(None, reversed(found)))}; say so as"
                " version_table and version_schema of AlembicEnvironment"
            )


@dataclass(frozen=True, slots=True)
class Revisions:
    """The revisions that an environment knows."""

    script: ScriptDirectory

    def resolved(self, revision: str) -> frozenset[str]:
        """Return the full names of what ``revision`` stands for; none for ``base``.

        Raises:
            AlembicEnvironmentError: There is no such revision, or it is a number of steps, which
                would lead shards to different places.
        """
        if _STEPS.search(revision):
            raise AlembicEnvironmentError(
                f"{revision!r} counts steps from where each shard stands; name a revision"
            )
        try:
            return frozenset(found.revision for found in self.script.get_revisions(revision))
        except CommandError as error:
            raise AlembicEnvironmentError(str(error)) from error

    def below(self, heads: Iterable[str]) -> frozenset[str]:
        """Return all that has run where ``heads`` are reached, themselves included."""
        found: set[str] = set()
        left = list(heads)
        while left:
            revision = self.script.get_revision(left.pop())
            if revision.revision in found:
                continue
            found.add(revision.revision)
            left += _names(revision.down_revision)
            left += [each.revision for each in self._needed(revision.dependencies)]
        return frozenset(found)

    def unknown(self, heads: Iterable[str]) -> list[str]:
        """Return those of ``heads`` that newer code has made."""
        known = {each.revision for each in self.script.walk_revisions()}
        return sorted(set(heads) - known)

    def steps(self, heads: frozenset[str], revision: str, *, down: bool) -> tuple[Revision, ...]:
        """Return what would run from ``heads`` to ``revision``, in its order.

        Raises:
            AlembicEnvironmentError: One of ``heads`` is unknown, or no way leads there.
        """
        if unknown := self.unknown(heads):
            raise AlembicEnvironmentError(
                f"revision {', '.join(unknown)} is unknown here; deploy the code that has it"
            )
        target, done = self.resolved(revision), self.below(heads)
        if (not down and target <= done) or (down and not target <= done):
            return ()
        try:
            found = self._found(heads, revision, down=down)
        except CommandError as error:
            raise AlembicEnvironmentError(str(error)) from error
        return tuple(Revision(step.revision.revision, step.revision.doc.strip()) for step in found)

    def has(self, revision: str) -> bool:
        """Return whether there is such a revision."""
        try:
            return self.script.get_revision(revision) is not None
        except CommandError:
            return False

    def _found(self, heads: frozenset[str], revision: str, *, down: bool) -> list[Any]:
        current: Any = tuple(sorted(heads))
        if down:
            return list(self.script._downgrade_revs(revision, current))  # noqa: SLF001
        return list(self.script._upgrade_revs(revision, current))  # noqa: SLF001

    def _needed(self, names: Any) -> Iterable[Any]:  # noqa: ANN401 -- one, several or none
        return self.script.get_revisions(tuple(_names(names))) if names else ()


def _names(names: Any) -> list[str]:  # noqa: ANN401 -- Alembic has one, several or none
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _none(steps: Steps) -> Steps:
    def look(heads: Any, context: MigrationContext) -> list[Any]:  # noqa: ANN401
        steps(heads, context)
        return []

    return look
