"""Ask a connection what it has seen, where that may be older than what Redis was told."""

from collections.abc import Callable
from typing import Final

from psycopg.pq import TransactionStatus
from sqlalchemy import (
    Connection,
    Engine,
    Text,
    and_,
    cast,
    column,
    func,
    literal_column,
    or_,
    select,
    table,
)

from datapatterns.cache_aside.milestones import seen_for_certain
from datapatterns.change_log.schema import PgSnapshot
from datapatterns.change_log.snapshots import Snapshot

_KEEPING_ITS_SNAPSHOT = ("repeatable read", "serializable")
_DECIDE_WHAT_IS_READ: Final = (
    "array_nulls", "backslash_quote", "bytea_output", "client_encoding", "DateStyle",
    "default_text_search_config", "extra_float_digits", "IntervalStyle", "lc_monetary",
    "lc_numeric", "lc_time", "quote_all_identifiers", "row_security", "search_path",
    "standard_conforming_strings", "TimeZone", "timezone_abbreviations", "transform_null_equals",
    "xmlbinary", "xmloption",
)  # fmt: skip

_settings = table(
    "pg_settings", column("name"), column("setting"), column("source"), schema="pg_catalog"
)
# Those of extensions have a dot. Who has not called one yet does not see what the server's files
# say of it.
_is_of_extension = and_(
    _settings.c.name.contains("."), _settings.c.source.in_(("session", "client"))
)
_line = func.concat(_settings.c.name, "=", _settings.c.setting)
# A digest is short, and tells no secret that somebody has put into a setting.
_outlook = (
    select(
        func.encode(
            func.sha256(
                func.convert_to(
                    func.concat_ws(
                        "\n",
                        cast(literal_column("current_user"), Text),
                        cast(literal_column("session_user"), Text),
                        func.string_agg(_line, "\n").aggregate_order_by(_line),
                    ),
                    "UTF8",
                )
            ),
            "hex",
        )
    )
    .where(or_(_settings.c.name.in_(_DECIDE_WHAT_IS_READ), _is_of_extension))
    .scalar_subquery()
)
_moment = select(func.pg_current_snapshot(type_=PgSnapshot), func.pg_is_in_recovery())
_look = _moment.add_columns(
    func.pg_current_xact_id_if_assigned().is_(None),
    func.current_setting("transaction_isolation").in_(_KEEPING_ITS_SNAPSHOT),
    # What was made there hides tables of the same name.
    func.pg_my_temp_schema() == 0,
    _outlook,
)


def seen_before(conn: Connection) -> Snapshot:
    """Return what statements of ``conn`` that begin after this see for certain."""
    snapshot, is_standby = conn.execute(_moment).one()
    return seen_for_certain(snapshot, is_standby=is_standby)


def seen_by_all_of(conn: Connection, outlook: Callable[[], str | None]) -> Snapshot | None:
    """Return what the transaction of ``conn`` has seen for certain in all its statements so far.

    None if it may have seen what nobody else may: own writes, also those that went past the
    library and those that a savepoint took back, temporary tables, or what its role or settings
    show it alone. None, too, if its statements had snapshots of their own, for then this one tells
    nothing of theirs. So ask it after what was read.

    Args:
        conn: What was read with.
        outlook: Returns what `outlook_of` does for those who shall be given what was read,
            or None if nobody knows.
    """
    driver = conn.connection.driver_connection
    if driver is None or driver.info.transaction_status != TransactionStatus.INTRANS:
        return None  # what was read has failed, and whoever read it went on
    snapshot, is_standby, has_not_written, keeps_its_snapshot, has_no_temporaries, own = (
        conn.execute(_look).one()
    )
    if not (has_not_written and keeps_its_snapshot and has_no_temporaries):
        return None
    if own != outlook():
        return None
    return seen_for_certain(snapshot, is_standby=is_standby)


def outlook_of(engine: Engine) -> str:
    """Return what decides, besides the rows, what connections of ``engine`` read.

    That is their role and settings such as ``search_path`` and the time zone, as a digest. What an
    application has named itself, such as ``app.tenant``, PostgreSQL does not list. One connection
    is looked at, which is made for it: who asks may hold the last one of the pool.
    """
    beside = Engine(engine.pool.recreate(), engine.dialect, engine.url)
    try:
        with beside.connect() as conn:
            return str(conn.scalar(select(_outlook)))
    finally:
        beside.dispose()
