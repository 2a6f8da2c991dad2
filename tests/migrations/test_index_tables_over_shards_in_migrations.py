"""An index over shards is one table more for autogenerate, and triggers."""

import pytest
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import ModifyTableOps
from sqlalchemy import BigInteger, Connection, Engine, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.alembic import register_indexes
from datapatterns.index_table import IndexTable
from datapatterns.sharding import EntityGroup

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    __shard__ = EntityGroup("person").by("tenant_id")

    tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    email: Mapped[str | None] = mapped_column(Text)


by_email = IndexTable("person_by_email", on=[Person.email], unique=True, mode="reserve")
register_indexes(Base.metadata, [by_email])


def migrated(conn: Connection) -> str:
    """Do what autogenerate finds; return how it writes it down."""
    options = {"autogenerate_plugins": ["alembic.autogenerate.*", "datapatterns"]}
    context = MigrationContext.configure(conn, opts=options)
    upgrade_ops = produce_migrations(context, Base.metadata).upgrade_ops
    assert upgrade_ops is not None
    for operation in upgrade_ops.ops:
        parts = operation.ops if isinstance(operation, ModifyTableOps) else [operation]
        for part in parts:
            Operations(context).invoke(part)
    return str(render_python_code(upgrade_ops))


def test_autogenerate_writes_down_its_table_and_its_triggers_once(engine: Engine) -> None:
    with engine.begin() as conn:
        code = migrated(conn)
        assert code.count("op.create_table('person_by_email'") == 1
        assert code.index("op.create_table('person'") < code.index("op.create_index_table(")
        assert "mode='reserve'" in code

        assert not by_email.create(conn)
        assert "op." not in migrated(conn)
