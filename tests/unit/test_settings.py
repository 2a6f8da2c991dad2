import pytest
from sqlalchemy import URL

from datapatterns import DataLayer
from datapatterns.errors import SchemaNameError, SettingsError
from datapatterns.settings import settings_from
from datapatterns.urls import checked_redis_url, postgres_url, shown_database, shown_redis

ENVIRONMENT = {
    "DATABASE_URL": "postgresql://host/everybodys",
    "REDIS_URL": "redis://everybodys",
    "DATAPATTERNS_DATABASE_URL": "postgresql://host/ours",
    "DATAPATTERNS_REDIS_URL": "redis://ours",
    "DATAPATTERNS_SHARDS": "s0=postgresql://h0/x?host=/run/pg\n  s1=postgres://h1/x",
    "DATAPATTERNS_SCHEMA": "shop",
}


def test_arguments_count_before_the_environment_and_our_variables_before_everybodys() -> None:
    arguments = settings_from(
        ENVIRONMENT,
        database_url="postgresql://host/argument",
        redis_url="redis://argument",
        shards={},
        schema="argument",
    )
    ours = settings_from(ENVIRONMENT)
    everybodys = settings_from(
        {name: value for name, value in ENVIRONMENT.items() if "DATAPATTERNS" not in name}
    )

    assert arguments.database_url
    assert arguments.database_url.database == "argument"
    assert (arguments.redis_url, arguments.schema) == ("redis://argument", "argument")
    assert not arguments.shards
    assert ours.database_url
    assert ours.database_url.database == "ours"
    assert (ours.redis_url, ours.schema, list(ours.shards)) == (
        "redis://ours",
        "shop",
        ["s0", "s1"],
    )
    assert ours.shards["s0"].query == {"host": "/run/pg"}
    assert everybodys.database_url
    assert everybodys.database_url.database == "everybodys"
    assert (everybodys.redis_url, everybodys.schema) == ("redis://everybodys", "datapatterns")


def test_a_variable_set_to_nothing_is_not_set() -> None:
    found = settings_from(dict.fromkeys(ENVIRONMENT, " "))

    assert (found.database_url, found.redis_url, found.shards) == (None, None, {})
    assert found.schema == "datapatterns"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_a_postgres_url_is_for_psycopg_3(scheme: str) -> None:
    assert postgres_url(f"{scheme}://host/x\n").drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://a%40b:p%40%2F%3A@[::1]:6/x", ("a@b", "p@/:", "::1", 6, "x")),
        ("postgresql://ann@azure:pw@host/x", ("ann@azure", "pw", "host", None, "x")),
        ("postgresql://u:p/a#b@host/x", ("u", "p/a#b", "host", None, "x")),
        ("postgresql:///x?host=/run/pg", (None, None, None, None, "x")),
    ],
)
def test_urls_keep_what_they_say(url: str, expected: tuple[object, ...]) -> None:
    found = postgres_url(url)

    assert (found.username, found.password, found.host, found.port, found.database) == expected
    assert found.query == ({"host": "/run/pg"} if "?" in url else {})


@pytest.mark.parametrize(
    "url",
    [
        "hidden",
        "mysql://u:hidden@host/x",
        "postgresql+asyncpg://u:hidden@host/x",
        "postgresql://u:hid@den@host/x",
        "postgresql://u:a@hidden/b@host/x",
        "postgresql://u:a@b?hidden=c@host/x",
        "postgresql://u:p@host:hidden/x",
        "postgresql://u:99999/hidden",
        "postgresql://u:p@host:0/hidden",
    ],
)
def test_a_database_url_that_cannot_be_used_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_from({"DATABASE_URL": url})

    assert "DATABASE_URL" in str(refused.value)
    assert "hid" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None or refused.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "hidden",
        "http://hidden",
        "redis://",
        "redis://u:p@host:hidden",
        "redis://u:a@hidden@host",
        "redis://u:1/hidden@host",
        "redis://u:1#hidden@host",
        "redis://u:1?hidden=x@host",
        "redis://host/hidden",
        "redis://host/-1",
        "redis://host/0/1",
    ],
)
def test_a_redis_url_that_cannot_be_used_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        checked_redis_url(url)

    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("option", ["colour=green", "db=green"])
def test_an_unusable_option_of_a_redis_url_is_refused_at_once(option: str) -> None:
    with pytest.raises(SettingsError, match="option"):
        DataLayer(redis_url=f"redis://host?{option}")


def test_a_password_among_the_options_is_as_hidden_as_one_before_the_host() -> None:
    url = "postgresql://u:old@host/x?password=first&connect_timeout=3&password=hidden"
    layer = DataLayer(url, shards={"s0": url})

    assert layer.engine.url.password == "hidden"  # noqa: S105 -- the test's own
    assert layer.engine.url.query == {"connect_timeout": "3"}
    assert "hidden" not in f"{layer.engine!r} {layer.shard_engines!r} {layer!r}"


@pytest.mark.parametrize(
    "shards",
    ["s0", "postgresql://host/x?a=b", "s0=redis://host", "s0=postgresql://h s0=postgres://h"],
)
def test_shards_that_cannot_be_read_are_refused(shards: str) -> None:
    with pytest.raises(SettingsError, match=r"DATAPATTERNS_SHARDS|shards\[s0\]"):
        settings_from({"DATAPATTERNS_SHARDS": shards})


@pytest.mark.parametrize("name", ["main", "", "S0", "a b", "x" * 41])
def test_a_shard_needs_a_name_that_output_can_show(name: str) -> None:
    with pytest.raises(SettingsError, match="shard"):
        DataLayer(shards={name: "postgresql://host/x"})


def test_a_schema_that_cannot_be_used_is_refused_by_the_name_of_its_setting() -> None:
    with pytest.raises(SettingsError, match="DATAPATTERNS_SCHEMA"):
        settings_from({"DATAPATTERNS_SCHEMA": "drop;"})
    for name in ("drop;", "order", "user", "lateral", "pg_x", "", "X", "x" * 41):
        with pytest.raises(SchemaNameError):
            settings_from({}, schema=name)


def test_what_is_shown_of_a_url_has_no_secret() -> None:
    database = postgres_url("postgresql://u:hidden@h:1/x?password=hidden&sslpassword=hidden")
    socket = URL.create("postgresql+psycopg", query={"host": "/run/pg", "password": "hidden"})

    assert shown_database(database) == "postgresql://u@h:1/x"
    assert shown_database(socket) == "postgresql://?host=/run/pg"
    assert shown_redis("rediss://u:hidden@h:1/2?password=hidden") == "rediss://h:1/2"
    assert shown_redis("unix://u:hidden@/run/redis.sock?db=3") == "unix:///run/redis.sock"
