"""Ways to do it, right and wrong: what finds nothing in the wrong ones proves nothing."""

from tests.interleavings.designs import (
    cache_aside,
    change_log,
    event_log,
    index_table,
    projection,
    read_model,
    relay,
    resharding,
    view,
)

_MODULES = (
    cache_aside,
    relay,
    read_model,
    event_log,
    projection,
    change_log,
    resharding,
    view,
    index_table,
)

TABLES = ";".join(module.TABLES for module in _MODULES)
DESIGNS = {
    f"{module.__name__.rpartition('.')[2]}: {design.name}": design
    for module in _MODULES
    for design in module.DESIGNS
}
