"""The data layer of an application, found by name."""

import sys
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from datapatterns import DataLayer


def load_app(app: str) -> "DataLayer":
    """Import the data layer of an application, written as ``package.module:name``.

    The name may be that of a function without arguments which returns the layer.

    Raises:
        click.BadParameter: There is no such thing, or it is no DataLayer.
    """
    from datapatterns import DataLayer  # noqa: PLC0415 -- help must not wait for it

    module, _, name = app.partition(":")
    if not module or not name:
        raise _bad_app(f"{app!r} is incomplete; write package.module:name")
    try:
        found = attrgetter(name)(_imported(module))
    except AttributeError as error:
        raise _bad_app(f"{app!r} cannot be found: {error}") from error
    if not isinstance(found, DataLayer) and callable(found):
        found = found()
    if not isinstance(found, DataLayer):
        raise _bad_app(f"{app!r} is no DataLayer but {type(found).__name__}")
    return found


def _imported(module: str) -> object:
    # A console script, other than `python -m`, does not look into the current folder.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            message = f"there is no module {error.name!r} here; run this where it can be imported"
            raise _bad_app(message) from error
        error.add_note(f"while importing {module}, as --app says")
        raise
    except Exception as error:
        error.add_note(f"while importing {module}, as --app says")
        raise


def _bad_app(message: str) -> click.BadParameter:
    return click.BadParameter(message, click.get_current_context(silent=True), param_hint="--app")
