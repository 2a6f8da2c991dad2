"""Data-layer patterns for PostgreSQL and Redis that stay consistent."""

from datapatterns.errors import (
    ConfigurationError,
    ConflictError,
    CorruptionError,
    DataPatternsError,
    OutcomeUnknownError,
    UnavailableError,
)
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
