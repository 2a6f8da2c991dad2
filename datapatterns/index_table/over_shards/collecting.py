"""The triggers that note which keys a transaction changes, as SQL.

They see what every statement does: of sessions, of Core, of functions, triggers and cascades. So
nobody has to reckon what an UPDATE has changed, and what is rolled back to a savepoint is gone from
the notes as well. A note that is still there at the COMMIT refuses it.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import ColumnElement, FromClause, func, literal, select

from datapatterns.index_table.definition import IndexDefinition, fingerprint
from datapatterns.index_table.maintenance import TRIGGER_SEARCH_PATH, function_name
from datapatterns.index_table.over_shards.sharded_index import as_text
from datapatterns.index_table.schema import index_tables
from datapatterns.index_table.statements import quoted, quoted_text, rendered, table_name
from datapatterns.sharding.engines import SESSION_SETTINGS

_NEW: Final = "new_rows"
_OLD: Final = "old_rows"


def create_collector(definition: IndexDefinition) -> str:
    """Return the statements that create the trigger function."""
    # Written alike whoever writes: in another time zone one key would be two texts.
    settings = " ".join(
        f"SET {quoted(name)} = {quoted_text(value)}" for name, value in SESSION_SETTINGS.items()
    )
    name, body = function_name(definition), quoted_text(_body(definition))
    return (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        f" SET search_path = {TRIGGER_SEARCH_PATH} {settings} AS {body};\n"
        f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC;"
    )


def _body(definition: IndexDefinition) -> str:
    old, new = definition.transition(_OLD), definition.transition(_NEW)
    names = definition.entry_identity
    notes = table_name(index_tables(definition.schema).index_change)
    touched = _touched(definition, old, new)
    note = rendered(literal(definition.name)), rendered(literal(fingerprint(definition)))
    return f"""
DECLARE
    gone jsonb;
    come jsonb;
    touched jsonb;
BEGIN
    CASE TG_OP
    WHEN 'INSERT' THEN
        come := ({_all_of(_images(definition, new, names))});
    WHEN 'DELETE' THEN
        gone := ({_all_of(_images(definition, old, names))});
    WHEN 'UPDATE' THEN
        gone := ({_all_of(_less(definition, old, new))});
        come := ({_all_of(_less(definition, new, old))});
        touched := ({_all_of(touched)});
    WHEN 'TRUNCATE' THEN
        RETURN NULL;  -- its entries lead nowhere then, and are swept
    END CASE;
    IF gone IS NOT NULL OR come IS NOT NULL OR touched IS NOT NULL THEN
        INSERT INTO {notes} (index_name, fingerprint, gone, come, touched)
        VALUES ({note[0]}, {note[1]}, coalesce(gone, '[]'), coalesce(come, '[]'),
                coalesce(touched, '[]'));
    END IF;
    RETURN NULL;
END
"""  # noqa: S608 -- rendered, quoted names


def _all_of(images: str) -> str:
    return f"SELECT jsonb_agg(image) FROM ({images}) AS noted (image)"  # noqa: S608 -- rendered


def _images(definition: IndexDefinition, rows: FromClause, names: Sequence[str]) -> str:
    return rendered(select(_image(definition, rows, names)).where(definition.is_indexed(rows)))


def _less(definition: IndexDefinition, rows: FromClause, others: FromClause) -> str:
    """Return entries of ``rows`` that ``others`` do not have."""
    names = definition.entry_identity
    return f"{_images(definition, rows, names)} EXCEPT {_images(definition, others, names)}"


def _touched(definition: IndexDefinition, old: FromClause, new: FromClause) -> str:
    """Return entries of rows whose included columns are others; also such as have come."""
    names, all_names = definition.entry_identity, definition.columns
    if names == all_names:
        return "SELECT NULL::jsonb WHERE false"
    changed = (
        f"{_pairs(definition, new, names, all_names)}"
        f" EXCEPT {_pairs(definition, old, names, all_names)}"
    )
    return f"SELECT image FROM ({changed}) AS changed (image, whole)"  # noqa: S608 -- rendered


def _pairs(
    definition: IndexDefinition, rows: FromClause, names: Sequence[str], all_names: Sequence[str]
) -> str:
    images = _image(definition, rows, names), _image(definition, rows, all_names)
    return rendered(select(*images).where(definition.is_indexed(rows)))


def _image(
    definition: IndexDefinition, rows: FromClause, names: Sequence[str]
) -> ColumnElement[object]:
    columns = definition.projection(rows)
    return func.jsonb_build_array(*(as_text(columns[name]) for name in names))
