"""Results of queries in a cache: under which name, and on what they depend."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import (
    CompoundSelect,
    Connection,
    Engine,
    MetaData,
    Select,
    Table,
    TextClause,
    select,
)
from sqlalchemy.sql.cache_key import CacheKey
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import iterate

from datapatterns.cache_aside.capturing import Followed, Tabled, TableName, read_told
from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.query_analysis import NAME_THEM, Named, read_tables
from datapatterns.cache_aside.query_conditions import Demand, Occurrence, occurrences_in
from datapatterns.cache_aside.query_keys import QueryName
from datapatterns.cache_aside.query_rows import (
    as_objects,
    as_tuples,
    is_certain,
    refuse_strangers,
    row_type_of,
)
from datapatterns.cache_aside.steps import Wanted
from datapatterns.cache_aside.tags import (
    canonical,
    checked_tags,
    is_tagged,
    names_values,
    stored_row_tag,
    stored_value_tag,
    table_of,
    table_tag,
)
from datapatterns.change_log.inspecting import found_names, inspect_columns, table_name
from datapatterns.errors import CacheKeyError, UncacheableQueryError

_PLANS_MAX = 1_000
_TAGS_OF_TABLE_MAX = 64
_FREE_TEXTS = {"*", "1"}
_WITH_TEXTS = ("_prefixes", "_suffixes", "_statement_hints", "_hints")
AnyQuery: TypeAlias = Select[*tuple[Any, ...]] | CompoundSelect[*tuple[Any, ...]]


class PlanOutdatedError(Exception):
    """Tables are followed otherwise than when the plan was made; nobody outside sees it."""


@dataclass(frozen=True, slots=True)
class Told:
    """How writes of a table are told.

    Attributes:
        table_tag: What depends on the table carries it.
        key_columns: The primary key by which rows are told; empty if they are not.
        tag_columns: Those whose values are told.
    """

    table_tag: str
    key_columns: tuple[str, ...]
    tag_columns: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known of all queries that differ in bound values only."""

    compiled: SQLCompiler
    types: tuple[Any, ...]
    tables: Sequence[Named] | None
    told: Mapping[TableName, Told]
    occurrences: Sequence[Occurrence]
    exact: Mapping[TableName, frozenset[str]]
    row_type: object
    names: dict[object, QueryName] = field(default_factory=dict)

    def tags(self, bound: Mapping[str, Any]) -> list[str]:
        """Return what the result depends on for these values."""
        by_key = {bind.key: bound[name] for bind, name in self.compiled.bind_names.items()}
        return [tag for table in self.tables or () for tag in self._tags_of(table, by_key)]

    def _tags_of(self, table: Named, bound: Mapping[str, Any]) -> list[str]:
        told = self.told[table.schema, table.name]
        own = [each for each in self.occurrences if _is_of(each.table, table)]
        # One that was not found in the query may show any row.
        if len(own) == table.times:
            exact = self.exact[table.schema, table.name]
            tags = [_narrow(each, told, exact, bound) for each in own]
            found = {tag for some in tags if some is not None for tag in some}
            if None not in tags and len(found) <= _TAGS_OF_TABLE_MAX:
                return sorted(found)
        return [told.table_tag]


class Asked(NamedTuple):
    """One call's wish for the rows of a query.

    Attributes:
        wanted: The entry, with its tags.
        codec: What makes rows of bytes.
        check: To be called with the connection before the query is executed there.
        rows: Makes values of the rows.
    """

    wanted: Wanted
    codec: Codec[list[Any]]
    check: Callable[[Connection], None]
    rows: Callable[[Iterable[Any]], list[Any]]


class Queries:
    """Knows for each query what its result depends on.

    Args:
        cache: The cache's name.
        engine: The database.
        schema: Where the library's tables live.
        target: Whose relay tells of captured tables.
        codec: Returns the codec of a type.
    """

    def __init__(
        self,
        cache: str,
        engine: Engine,
        *,
        schema: str,
        target: str,
        codec: Callable[[object], Codec[Any]],
    ) -> None:
        self._cache = cache
        self._engine = engine
        self._schema = schema
        self._target = target
        self._codec = codec
        self._watched: list[Table] = []
        self._plans: dict[object, _Plan] = {}
        self._lock = Lock()

    def watch(self, models: Iterable[Tabled]) -> None:
        """Take note that sessions tell of writes to these tables."""
        self._watched += [table_of(model) for model in models]
        self._plans.clear()

    def asked(
        self, statement: AnyQuery, value_type: object | None, tags: Iterable[str] | None
    ) -> Asked:
        """Return what a call wants.

        Raises:
            MissingRightsError: The role may not ask the server what the query depends on.
            UncacheableQueryError: Nobody can tell what it depends on, or when that changes.
        """
        _refuse_no_query(statement)
        cache_key = statement._generate_cache_key()  # noqa: SLF001 -- what SQLAlchemy itself uses
        known = _known_by(cache_key, value_type, tags)
        plan = self._plans.get(known)
        if plan is None:
            if value_type is None:
                _refuse_entities(statement)
            plan = self._make(statement, cache_key, derives=tags is None)
            if known is not None:
                self._keep(known, plan)
        return self._asked(plan, cache_key, value_type, tags)

    def known(
        self, statement: AnyQuery, value_type: object | None, tags: Iterable[str] | None
    ) -> Asked | None:
        """Return what `asked` does, None if that takes a question to the server."""
        cache_key = getattr(statement, "_generate_cache_key", lambda: None)()
        plan = self._plans.get(_known_by(cache_key, value_type, tags))
        return None if plan is None else self._asked(plan, cache_key, value_type, tags)

    def _asked(
        self,
        plan: _Plan,
        cache_key: CacheKey | None,
        value_type: object | None,
        tags: Iterable[str] | None,
    ) -> Asked:
        given = None if cache_key is None else cache_key.bindparams
        bound = plan.compiled.construct_params(extracted_parameters=given, escape_names=False)
        row_type = value_type or plan.row_type
        codec = self._codec(list[row_type])  # type: ignore[valid-type]  # made at run time
        name = plan.names.get(row_type)
        if name is None:
            name = plan.names[row_type] = QueryName.of(self._cache, plan.compiled, row_type)
        wanted = Wanted(name.entry(bound), checked_tags(plan.tags(bound) if tags is None else tags))

        def check(conn: Connection) -> None:
            if plan.tables and self._told(conn, plan.tables) != plan.told:
                self._plans.clear()
                raise PlanOutdatedError

        def rows(found: Iterable[Any]) -> list[Any]:
            if value_type is not None:
                return as_objects(found, value_type)
            made = as_tuples(found)
            if not is_certain(plan.types):
                refuse_strangers(codec, made)
            return made

        return Asked(wanted, codec, check, rows)

    def _keep(self, known: object, plan: _Plan) -> None:
        with self._lock:
            if len(self._plans) >= _PLANS_MAX:
                self._plans.clear()
            self._plans[known] = plan

    def _make(self, statement: AnyQuery, cache_key: CacheKey | None, *, derives: bool) -> _Plan:
        _refuse_what_is_not_read(statement, self._engine)
        dialect = self._engine.dialect
        compiled: Any = dialect.statement_compiler(dialect, statement, cache_key=cache_key)
        types = tuple(each.type for each in compiled._result_columns)  # noqa: SLF001
        if not derives:
            return _Plan(compiled, types, None, {}, (), {}, row_type_of(types))
        whole: Any = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
        with self._engine.connect() as conn:
            conn.execution_options(isolation_level="READ COMMITTED")
            tables = read_tables(conn, whole)
            conn.rollback()
            told = self._told(conn, tables)
            exact = {(each.schema, each.name): _exact_columns(conn, each) for each in tables}
        for table in tables:
            if (table.schema, table.name) not in told:
                raise UncacheableQueryError(
                    f"nobody tells of writes to {table.schema}.{table.name}",
                    "capture(conn, Model) in a migration, watch_tags(Session, Model) of this cache"
                    f" where only sessions write, or {NAME_THEM}",
                )
        return _Plan(
            compiled, types, tables, told, occurrences_in(statement), exact, row_type_of(types)
        )

    def _told(self, conn: Connection, tables: Sequence[Named]) -> dict[TableName, Told]:
        """Return how writes of those of ``tables`` are told of which they are."""
        wanted = {(table.schema, table.name) for table in tables}
        if not wanted:
            return {}
        followed = read_told(conn, schema=self._schema, target=self._target)
        found = {name: _told_by_relay(each) for name, each in followed}
        if self._watched:
            names: dict[str, TableName] = conn.execute(
                select(found_names(self._watched))
            ).scalar_one()
            for table in self._watched:
                if (name := names.get(table_name(table))) is not None:
                    found.setdefault((name[0], name[1]), _told_by_sessions(table))
        return {name: told for name, told in found.items() if name in wanted}


def _known_by(
    cache_key: CacheKey | None, value_type: object | None, tags: Iterable[str] | None
) -> object | None:
    return None if cache_key is None else (cache_key.key, value_type is None, tags is None)


def _exact_columns(conn: Connection, table: Named) -> frozenset[str]:
    """Return the columns whose equal values have one name, whatever the model takes them for."""
    name = table_name(Table(table.name, MetaData(), schema=table.schema))
    return frozenset(
        column.name
        for column in inspect_columns(conn, name)
        # Padded values are equal to what they were before.
        if column.equality_is_identity and not column.type_sql.startswith("character(")
    )


def _told_by_relay(followed: Followed) -> Told:
    tag_columns = frozenset(followed.tag_columns)
    return Told(followed.table_tag, followed.key_columns, tag_columns)


def _told_by_sessions(table: Table) -> Told:
    key = tuple(column.name for column in table.primary_key)
    has_key = all(map(names_values, table.primary_key))
    tag_columns = frozenset(column.name for column in filter(is_tagged, table.columns))
    return Told(table_tag(table), key if has_key else (), tag_columns)


def _is_of(table: Table, named: Named) -> bool:
    # A table without a schema may be any of this name: then one is found too often.
    return table.name == named.name and table.schema in {None, named.schema}


def _narrow(
    occurrence: Occurrence, told: Told, exact: frozenset[str], bound: Mapping[str, Any]
) -> list[str] | None:
    """Return the tags of the rows that may show here; None if that may be any row."""
    key = tuple(demand.column.name for demand in occurrence.row)
    # A value that is none of the column's type says nothing.
    if key and key == told.key_columns and exact.issuperset(key):
        with suppress(CacheKeyError):
            return _row_tags(occurrence.row, told, bound)
    for demand in sorted(occurrence.columns, key=lambda demand: demand.is_list):
        if demand.column.name in told.tag_columns & exact:
            with suppress(CacheKeyError):
                return _value_tags(demand, told, bound)
    return None


def _row_tags(row: Sequence[Demand], told: Told, bound: Mapping[str, Any]) -> list[str]:
    values = [_values(demand, bound) for demand in row]
    return [
        stored_row_tag(
            told.table_tag,
            tuple(canonical(demand.column, value) for demand, value in zip(row, key, strict=True)),
        )
        for key in product(*values)
    ]


def _value_tags(demand: Demand, told: Told, bound: Mapping[str, Any]) -> list[str]:
    return [
        stored_value_tag(told.table_tag, demand.column.name, canonical(demand.column, value))
        for value in _values(demand, bound)
    ]


def _values(demand: Demand, bound: Mapping[str, Any]) -> list[Any]:
    if demand.value is None:
        return [None]
    if demand.value not in bound:  # the ORM has written the condition anew
        raise CacheKeyError(demand.value, "it is nowhere in the query")
    value = bound[demand.value]
    return [*value] if demand.is_list else [value]


def _refuse_no_query(statement: object) -> None:
    if not isinstance(statement, Select | CompoundSelect):
        raise UncacheableQueryError(
            "it is no SELECT made of tables and columns", "write it with select()"
        )


def _refuse_what_is_not_read(statement: AnyQuery, engine: Engine) -> None:
    """Refuse what the server is not asked about, or would take for a constant.

    Raises:
        UncacheableQueryError: It is.
    """
    options = (statement.get_execution_options(), engine.get_execution_options())
    if any("schema_translate_map" in each for each in options):
        raise UncacheableQueryError("schema_translate_map", "name the schema in the tables")
    for part in iterate(statement):
        if getattr(part, "_with_options", ()):
            raise UncacheableQueryError(
                "options of loaders, which mean nothing for rows", "select columns of a join"
            )
        is_text = isinstance(part, TextClause) or getattr(part, "is_literal", False)
        has_texts = any(getattr(part, name, None) for name in _WITH_TEXTS)
        if has_texts or (is_text and str(part) not in _FREE_TEXTS):
            raise UncacheableQueryError("SQL text", f"write it in constructs, or {NAME_THEM}")
        if hasattr(type(part), "_compiler_dispatcher"):
            raise UncacheableQueryError(
                f"{type(part).__name__}, a construct of yours",
                f"use those of SQLAlchemy, or {NAME_THEM}",
            )


def _refuse_entities(statement: AnyQuery) -> None:
    first: Any = statement
    while isinstance(first, CompoundSelect):
        first = first.selects[0]
    described = getattr(first, "column_descriptions", [])
    if any(each.get("entity") is not None and each["expr"] is each["entity"] for each in described):
        raise UncacheableQueryError(
            "a mapped class, whose objects belong to a session",
            "select columns, or name a value_type that takes them",
        )
