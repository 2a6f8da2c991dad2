"""What the story calls a round trip of psycopg."""

from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

_CHARACTERS_MAX = 200
# Generators of psycopg that have no statement among their arguments.
_NAMES = {
    "_commit_gen": "COMMIT",
    "_rollback_gen": "ROLLBACK",
    "_tpc_begin_gen": "BEGIN",
    "_tpc_prepare_gen": "PREPARE TRANSACTION",
    "_close_gen": "CLOSE cursor",
    "_fetch_gen": "FETCH",
    "_scroll_gen": "MOVE",
    "copy_end": "end of COPY",
}
_UNGATED = {
    "notifies",  # it waits, and asks for nothing
    "copy_to",  # the end of a COPY is a gate, its parts are not
    "_read_gen",
    "_read_row_gen",
    "_end_copy_out_gen",
    "_stream_fetchone_gen",
    "_set_autocommit_gen",  # settings of the driver: nothing is sent
    "_set_isolation_level_gen",
    "_set_read_only_gen",
    "_set_deferrable_gen",
}


def name_of(gen: object) -> str:
    """Return the name of the function that has made a generator of psycopg."""
    code = getattr(gen, "gi_code", None)
    return code.co_name if code else getattr(gen, "__name__", "a round trip")


def is_gated(gen: object) -> bool:
    """Return whether a generator of psycopg begins something at the server."""
    name = name_of(gen)
    frame = getattr(gen, "gi_frame", None)
    if name == "_enter_gen" and frame and _is_pipeline(frame.f_locals.get("self")):
        return False  # a mode of the driver: nothing is sent
    return name not in _UNGATED


def waits_for_a_message(gen: object) -> bool:
    """Return whether a generator of psycopg asks for nothing and waits for what others say."""
    return name_of(gen) == "notifies"


def statement_of(gen: object) -> str:
    """Return the whole statement that a generator of psycopg is about to send, if it is one."""
    frame = getattr(gen, "gi_frame", None)
    query = _query_in(frame.f_locals) if frame else None
    return "" if query is None else _text(query)


def _query_in(names: dict[str, Any]) -> object:
    return names.get("query", names.get("statement"))


def label_of(gen: object) -> str:
    """Return what a generator of psycopg is about to send, shortened."""
    name = name_of(gen)
    frame = getattr(gen, "gi_frame", None)
    names: dict[str, Any] = frame.f_locals if frame else {}
    query = _query_in(names)
    if query is not None:
        return " ".join(_text(query).split())[:_CHARACTERS_MAX]
    owner: Any = names.get("self")
    if _is_pipeline(owner):
        return f"pipeline {name.strip('_').removesuffix('_gen')}"
    if isinstance(owner, psycopg.Transaction | psycopg.AsyncTransaction):
        return _transaction_label(owner, name, failed=names.get("exc_val") is not None)
    if name == "_tpc_finish_gen":
        # Its state tells whether there is a prepared transaction to be ended.
        prepared = names.get("xid") or (owner._tpc and owner._tpc[1])  # noqa: SLF001 -- nothing else tells
        return f"{names['action']} PREPARED" if prepared else str(names["action"])
    return _NAMES.get(name, name.strip("_").removesuffix("_gen"))


def _transaction_label(owner: Any, name: str, *, failed: bool) -> str:  # noqa: ANN401 -- either kind
    failed = failed or owner.force_rollback
    if name == "_enter_gen":
        return f"SAVEPOINT {owner.savepoint_name}" if _is_inner(owner, name) else "BEGIN"
    if _is_inner(owner, name):
        return f"{'ROLLBACK TO' if failed else 'RELEASE'} {owner.savepoint_name}"
    return "ROLLBACK" if failed else "COMMIT"


def _is_inner(owner: Any, name: str) -> bool:  # noqa: ANN401 -- either kind
    if name == "_enter_gen":
        return bool(owner.connection.info.transaction_status != TransactionStatus.IDLE)
    return not owner._outer_transaction  # noqa: SLF001 -- its name alone doesn't tell


def _is_pipeline(owner: object) -> bool:
    return isinstance(owner, psycopg.Pipeline | psycopg.AsyncPipeline)


def _text(query: object) -> str:
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if isinstance(query, psycopg.sql.Composable):
        return query.as_string(None)
    return str(query)
