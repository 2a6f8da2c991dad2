from sqlalchemy import Connection, text


def test_the_librarys_schema_exists_after_the_migrations(conn: Connection) -> None:
    assert conn.scalar(text("SELECT to_regnamespace('datapatterns') IS NOT NULL"))
