"""Objects of the application that an option names, written as ``package.module:name``."""

import sys
from importlib import import_module
from operator import attrgetter
from typing import Any

import click


def load_object(where: str, *, option: str) -> Any:  # noqa: ANN401 -- whatever it is
    """Import what ``where`` names.

    Raises:
        click.BadParameter: There is no such thing.
    """
    module, _, name = where.partition(":")
    # A console script, other than `python -m`, does not look into the current folder.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return attrgetter(name)(import_module(module))
    except (AttributeError, ModuleNotFoundError, ValueError) as error:
        raise click.BadParameter(
            f"{where!r} cannot be found: {error}", param_hint=option
        ) from error
