"""What the parts of a view are called."""

import re
from dataclasses import dataclass

from datapatterns.errors import ViewDefinitionError

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_NEXT = "__next"
_CHECK = "__check"
_ADVICE = f"use 1 to 40 of a-z, 0-9 and _, no digit first, no {_NEXT} or {_CHECK} last"


@dataclass(frozen=True, slots=True)
class ViewNames:
    """The relations of one view, and its consumer."""

    schema: str
    view: str

    @property
    def stored(self) -> str:
        """Return the table that holds what the view shows."""
        return f"{self.view}_stored"

    @property
    def definition(self) -> str:
        """Return the plain view that runs the query."""
        return f"{self.view}_definition"

    @property
    def realtime(self) -> str:
        """Return the plain view of what is stored with what is pending."""
        return f"{self.view}_realtime"

    @property
    def relations(self) -> tuple[str, str, str, str]:
        """Return all relations: what is shown, stored, the query, and what is so now."""
        return (self.view, self.stored, self.definition, self.realtime)

    @property
    def next(self) -> "ViewNames":
        """Return the names of the version that is going to take the view's place."""
        return ViewNames(self.schema, f"{self.view}{_NEXT}")

    @property
    def check(self) -> "ViewNames":
        """Return the names of what is made to be compared with the view, and undone."""
        return ViewNames(self.schema, f"{self.view}{_CHECK}")

    @property
    def live(self) -> "ViewNames":
        """Return the names of the view itself, whichever version this is."""
        return ViewNames(self.schema, self.view.removesuffix(_NEXT))

    @property
    def consumer(self) -> str:
        """Return who consumes changes for the view."""
        return f"view:{self.view}"


def view_names(schema: str, view: str) -> ViewNames:
    """Return the names for a view called ``view``.

    Raises:
        ViewDefinitionError: No view can be called so.
    """
    if not _NAME.fullmatch(view) or view.endswith((_NEXT, _CHECK)):
        raise ViewDefinitionError(view, clause="its name", advice=_ADVICE)
    return ViewNames(schema, view)
