"""Call the functions that migrations made in the library's schema, whatever that is called."""

from typing import Any

from sqlalchemy.sql.functions import Function
from sqlalchemy.types import TypeEngine


def library_function(
    schema: str, name: str, *arguments: object, returns: TypeEngine[Any] | None = None
) -> Function[Any]:
    """Return a call of the function ``name`` in ``schema``.

    Not ``func.<schema>.<name>``: that takes the last _ off a name, answers some names (such as
    ``_asdict`` or ``opts``) with attributes of its own, and knows some functions by their name.
    """
    return Function(name, *arguments, type_=returns, packagenames=(schema,))
