"""What an application declares, in one object that the CLI and the worker can load."""

from dataclasses import dataclass, field
from functools import cached_property

from sqlalchemy import Engine, create_engine


@dataclass(frozen=True)
class DataLayer:
    """The database an application uses and the patterns laid over it."""

    database_url: str = field(repr=False)

    @cached_property
    def engine(self) -> Engine:
        """The pool of connections that loops and the CLI draw from."""
        return create_engine(self.database_url)
