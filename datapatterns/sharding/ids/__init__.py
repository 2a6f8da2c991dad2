"""Ids that carry their bucket, made where they are needed, sortable by time."""

from datapatterns.sharding.ids.generator import IdGenerator
from datapatterns.sharding.ids.layout import IdParts, parts_of_id

__all__ = ["IdGenerator", "IdParts", "parts_of_id"]
