"""Everything an application derives, at a glance: how stale it is and what is in the way."""

from datapatterns.overview.gathering import Declared, gather
from datapatterns.overview.standing import Concern, Standing

__all__ = ["Concern", "Declared", "Standing", "gather"]
