"""Where hits may come from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """A server that has been told everything.

    Attributes:
        prefix: What the keys there begin with.
        server: Which run of which server it is.
    """

    prefix: str
    server: str
