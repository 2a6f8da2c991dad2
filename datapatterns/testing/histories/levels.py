"""Which anomalies a consistency level forbids.

The names are those of Adya ("Weak consistency: a generalized theory and optimistic
implementations for distributed transactions", 1999) as Elle uses them (Kingsbury and Alvaro,
"Elle: inferring isolation anomalies from experimental observations", 2020). With the suffix
``-process`` a cycle also needs the order of one client's transactions, with ``-realtime`` that
one transaction had ended before another began.
"""

from typing import Literal, get_args

ConsistencyModel = Literal[
    "read-uncommitted",
    "read-committed",
    "snapshot-isolation",
    "serializable",
    "strong-session-snapshot-isolation",
    "strong-session-serializable",
    "strong-snapshot-isolation",
    "strict-serializable",
]

_SNAPSHOT_CYCLES = frozenset({"G0", "G1c", "G-single", "G-nonadjacent"})
_SESSION = frozenset({"non-monotonic-read", "read-your-writes-violation"})
_REAL_TIME = frozenset({"stale-read"})
_ALWAYS = frozenset({"duplicate-elements", "garbage-read"})

_READ_UNCOMMITTED = _ALWAYS | {"G0"}
# Reads that fit into no order have seen what was rolled back or replaced.
_READ_COMMITTED = _READ_UNCOMMITTED | {"incompatible-order", "G1a", "G1b", "G1c"}
_SNAPSHOT = _READ_COMMITTED | {"internal", "lost-update", "G-single", "G-nonadjacent"}
_SERIALIZABLE = _SNAPSHOT | {"G2-item"}


def _with(suffix: str, names: frozenset[str]) -> frozenset[str]:
    return frozenset(f"{name}{suffix}" for name in names)


_SESSION_SNAPSHOT = _SNAPSHOT | _SESSION | _with("-process", _SNAPSHOT_CYCLES)
_SESSION_SERIALIZABLE = _SERIALIZABLE | _SESSION_SNAPSHOT | {"G2-item-process"}
_STRONG_SNAPSHOT = _SESSION_SNAPSHOT | _REAL_TIME | _with("-realtime", _SNAPSHOT_CYCLES)

FORBIDDEN: dict[ConsistencyModel, frozenset[str]] = {
    "read-uncommitted": _READ_UNCOMMITTED,
    "read-committed": _READ_COMMITTED,
    "snapshot-isolation": _SNAPSHOT,
    "serializable": _SERIALIZABLE,
    "strong-session-snapshot-isolation": _SESSION_SNAPSHOT,
    "strong-session-serializable": _SESSION_SERIALIZABLE,
    "strong-snapshot-isolation": _STRONG_SNAPSHOT,
    "strict-serializable": _SESSION_SERIALIZABLE | _STRONG_SNAPSHOT | {"G2-item-realtime"},
}
"""For each level the names of what must not be found. PostgreSQL's REPEATABLE READ is snapshot
isolation, and strong on one server; its SERIALIZABLE is ``serializable``, without real time."""


def forbidden_by(model: ConsistencyModel) -> frozenset[str]:
    """Return the names of the anomalies that ``model`` forbids.

    Raises:
        ValueError: There is no such model.
    """
    if model not in FORBIDDEN:
        raise ValueError(f"{model!r} is none of {', '.join(get_args(ConsistencyModel))}")
    return FORBIDDEN[model]
