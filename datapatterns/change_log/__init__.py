"""Captured row changes."""
