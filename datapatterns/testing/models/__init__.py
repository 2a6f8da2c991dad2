"""Tools that test what users build from the patterns: deciders, projections, views, caches."""

from datapatterns.testing.models.corpus import StoredPayload, read_corpus, record_corpus
from datapatterns.testing.models.decider import Call, ImpureEvolveError
from datapatterns.testing.models.decider_spec import DeciderSpec, Decision
from datapatterns.testing.models.derived import Derived, DerivedCache, DerivedTable
from datapatterns.testing.models.projection_spec import ProjectionSpec
from datapatterns.testing.models.story import SpecError
from datapatterns.testing.models.upcasting import assert_upcasters

__all__ = [
    "Call",
    "DeciderSpec",
    "Decision",
    "Derived",
    "DerivedCache",
    "DerivedTable",
    "ImpureEvolveError",
    "ProjectionSpec",
    "SpecError",
    "StoredPayload",
    "assert_upcasters",
    "read_corpus",
    "record_corpus",
]
