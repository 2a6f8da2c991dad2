"""CQRS."""
