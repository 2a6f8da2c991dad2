"""Data-layer patterns for PostgreSQL and Redis that stay consistent."""
