"""Data-layer patterns for PostgreSQL and Redis that stay consistent."""

from typing import TYPE_CHECKING

from datapatterns.errors import (
    ConfigurationError,
    ConflictError,
    CorruptionError,
    DataPatternsError,
    OutcomeUnknownError,
    UnavailableError,
)

if TYPE_CHECKING:
    from datapatterns.layer import DataLayer

__all__ = [
    "ConfigurationError",
    "ConflictError",
    "CorruptionError",
    "DataLayer",
    "DataPatternsError",
    "OutcomeUnknownError",
    "UnavailableError",
]


def __getattr__(name: str) -> object:
    """Load ``DataLayer`` when it is asked for.

    It knows every pattern. Who imports one of them, or the errors alone, need not wait for all: a
    command line starts in half the time.
    """
    if name != "DataLayer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from datapatterns.layer import DataLayer  # noqa: PLC0415 -- that is the point

    globals()[name] = DataLayer
    return DataLayer
