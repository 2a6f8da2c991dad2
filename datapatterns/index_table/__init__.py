"""Index tables."""
