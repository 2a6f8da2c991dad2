"""Materialized views."""
