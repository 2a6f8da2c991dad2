"""The data layer of an application, found by name."""

from typing import TYPE_CHECKING

from datapatterns_cli.named_objects import bad_option, load_object

if TYPE_CHECKING:
    from datapatterns import DataLayer


def load_app(app: str) -> "DataLayer":
    """Import the data layer of an application, written as ``package.module:name``.

    The name may be that of a function without arguments which returns the layer.

    Raises:
        click.BadParameter: There is no such thing, or it is no DataLayer.
    """
    from datapatterns import DataLayer  # noqa: PLC0415 -- help must not wait for it

    found = load_object(app, option="--app")
    if not isinstance(found, DataLayer) and callable(found):
        found = found()
    if not isinstance(found, DataLayer):
        raise bad_option(f"{app!r} is no DataLayer but {type(found).__name__}", "--app")
    return found
