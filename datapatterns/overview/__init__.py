"""All that an application derives, at a glance: how stale it is, and whether it is right."""

from datapatterns.overview.gathering import Declared, gather
from datapatterns.overview.proof import Proof, Verdict
from datapatterns.overview.proving import Claim, claims, prove
from datapatterns.overview.seen_layer import SeenLayer
from datapatterns.overview.standing import Concern, Standing

__all__ = [
    "Claim",
    "Concern",
    "Declared",
    "Proof",
    "SeenLayer",
    "Standing",
    "Verdict",
    "claims",
    "gather",
    "prove",
]
