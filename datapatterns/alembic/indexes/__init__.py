"""Index tables in migrations."""
