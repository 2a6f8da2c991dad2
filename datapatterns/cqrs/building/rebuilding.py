"""Mend the live version of a read model in place, while readers keep what they have.

The log is folded into a temporary table, page by page. Then one transaction writes the rows that
differ, moves the checkpoint and makes this version the live one: readers see the old rows until
it commits, and the new ones from then on. What they wait for meanwhile: the table does not move
on until then.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.cqrs.definition import TableProjection
from datapatterns.cqrs.running.advancing import advance
from datapatterns.cqrs.running.bells import ring
from datapatterns.cqrs.running.events_elsewhere import note_followed_log
from datapatterns.cqrs.running.leasing import Lease, read_live_version, release, take_over
from datapatterns.cqrs.running.modes import read_mode
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.registering import register_build, take_place
from datapatterns.cqrs.running.runners import LeaseTerms
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.differences import delete_rows, store_rows
from datapatterns.cqrs.tables.kept_poison import KeptPoison
from datapatterns.cqrs.tables.projecting import is_of_data, message_of
from datapatterns.cqrs.tables.read_model import ReadModels, read_models_of
from datapatterns.cqrs.tables.replaying import AnyReplay, advance_replay, replayed
from datapatterns.cqrs.tables.targets import lock_writers_out, resolve_targets
from datapatterns.errors import LeaseLostError, ProjectionDefinitionError, ProjectionModeError
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.sql.long_statements import allow_long_statements
from datapatterns.transactions import fresh_reads, resuming


@dataclass(frozen=True, slots=True)
class TableRebuild:
    """Rebuilds one projection into tables."""

    store: EventStore
    projection: type[TableProjection]
    terms: LeaseTerms
    page_events: int
    on_page: Callable[[ProjectionProgress], None]

    def run(self, engine: Engine) -> ProjectionProgress:
        """Return when this version's rows are live."""
        with fresh_reads(engine) as conn:
            with resuming(conn, self._this):
                if read_mode(conn, self._tables, self.projection) == "inline":
                    raise ProjectionModeError(
                        self.projection.name,
                        mode="inline",
                        advice="make it async, rebuild it, and make it inline again",
                    )
                register_build(conn, self._tables, self.projection)
                live = read_live_version(conn, self._tables, self.projection)
                if live not in (None, self.projection.version):
                    raise LeaseLostError(self._this, epoch=0)
                leases = take_over(
                    conn,
                    self._tables,
                    self.projection,
                    owner=self.terms.owner,
                    seconds=self.terms.seconds,
                    # Without a live version nobody else may make one meanwhile.
                    all_versions=live is None,
                )
            failpoint("rebuild.leases-taken")
            try:
                return self._build(conn, leases)
            finally:
                if not conn.invalidated:
                    with resuming(conn, self._this):
                        for lease in leases:
                            release(conn, self._tables, lease)

    def _build(self, conn: Connection, leases: list[Lease]) -> ProjectionProgress:
        # Not less than any version has shown: what somebody has waited for must not go away.
        shown = max(lease.position for lease in leases)
        events = 0

        def renew(conn: Connection) -> None:
            for lease in leases:
                advance(conn, self._tables, lease, lease.position)

        def count(done: ProjectionProgress) -> None:
            nonlocal events
            events += done.events
            self.on_page(done)

        with replayed(conn, self.store, self.projection, page_events=self.page_events) as replay:
            if replay.projection.on_poison != "stop":
                replay.kept = KeptPoison()
            done = advance_replay(conn, replay, in_page=renew, on_page=count)
            while done.position < shown:
                done = advance_replay(conn, replay, in_page=renew, on_page=count)
            failpoint("rebuild.replayed")
            with resuming(conn, self._this):
                self._swap(conn, leases, replay)
            failpoint("rebuild.swapped")
            ring(self.store.schema, self.projection.name)
        return ProjectionProgress(events, done.position, caught_up=True)

    def _swap(self, conn: Connection, leases: list[Lease], replay: AnyReplay) -> None:
        models = read_models_of(self.projection)
        allow_long_statements(conn)
        # A page of a runner that has lost its lease may be under way, with locks on some rows. It
        # is waited for before any row is locked here, or the two could wait for each other.
        for model in models.values():
            lock_writers_out(conn, model.table)
        # Before the rows, which may take longer than a lease: whoever claims one now waits.
        mine = [lease for lease in leases if lease.version == self.projection.version]
        for other in leases:
            if other not in mine:  # before they are retired, or none of them can be checked
                advance(conn, self._tables, other, other.position, parked=0)
        kept = replay.kept or KeptPoison()
        overwritten = {lease.version for lease in leases}
        kept.record(conn, self._tables, mine, versions=overwritten)
        mine = [
            advance(conn, self._tables, lease, replay.position, parked=kept.count(lease))
            for lease in mine
        ]
        for lease in mine:  # whether this is all of the log, its runner tells
            note_followed_log(conn, self._tables, self.store, lease, mark=None)
        _replace(conn, models, replay.models)
        failpoint("rebuild.rows-replaced")
        targets = resolve_targets(conn, self.projection)
        take_place(conn, self._tables, mine[0], targets=targets)

    @property
    def _this(self) -> str:
        return f"the rebuild of projection {self.projection.name}"

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)


def _replace(conn: Connection, models: ReadModels, replayed: ReadModels) -> None:
    try:
        for table in reversed(list(models)):  # what refers to others goes before them
            delete_rows(conn, models[table], replayed[table])
        for table in models:
            store_rows(conn, models[table], replayed[table])
        conn.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    except DBAPIError as error:
        if is_of_data(error):
            name = next(iter(models.values())).name
            refused = (
                f"its table refuses what the log gives: {message_of(error)}; change"
                " one of them, then rebuild"
            )
            raise ProjectionDefinitionError(name, refused) from error
        raise
