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
    if not module or module.startswith(".") or not name:
        raise bad_option(f"{where!r} is incomplete; write package.module:name", option)
    try:
        return attrgetter(name)(_imported(module, option))
    except AttributeError as error:
        raise bad_option(f"{where!r} cannot be found: {error}", option) from error


def bad_option(message: str, option: str) -> click.BadParameter:
    """Return the error for what ``option`` names."""
    return click.BadParameter(message, click.get_current_context(silent=True), param_hint=option)


def _imported(module: str, option: str) -> object:
    # A console script, other than `python -m`, does not look into the current folder.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            message = f"there is no module {error.name!r} here; run this where it can be imported"
            raise bad_option(message, option) from error
        error.add_note(f"while importing {module}, as {option} says")
        raise
    except Exception as error:
        error.add_note(f"while importing {module}, as {option} says")
        raise
