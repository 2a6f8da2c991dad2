"""Whatever a password is made of, and however it is written, nobody reads it from us."""

from hypothesis import example, given
from hypothesis import strategies as st

from datapatterns import DataLayer
from datapatterns.errors import SettingsError

CANARY = "c4n4ry"
awkward = st.text(alphabet="@:/?#%[]=& ab1\\'\"é", max_size=6)
passwords = st.builds(lambda before, after: f"{before}{CANARY}{after}", awkward, awkward)


@example(password=f"@[{CANARY}]", before="")
@given(password=passwords, before=st.sampled_from(["", "postgres", "postgresql+psycopg"]))
def test_a_database_password_is_never_shown(password: str, before: str) -> None:
    _assert_hidden(lambda: DataLayer(f"{before or 'postgresql'}://ann:{password}@host:1/shop"))
    _assert_hidden(lambda: DataLayer(shards={"s0": f"postgresql://ann:{password}@host:1/shop"}))


@given(password=passwords)
def test_a_redis_password_is_never_shown(password: str) -> None:
    _assert_hidden(lambda: DataLayer(redis_url=f"redis://ann:{password}@host:1/0"))
    _assert_hidden(lambda: DataLayer(redis_url=f"unix://ann:{password}@/run/redis.sock"))


def _assert_hidden(make: object) -> None:
    assert callable(make)
    try:
        layer = make()
    except SettingsError as error:
        shown = f"{error!r} {error} {error.__cause__} "
    else:
        shown = f"{layer!r} {layer.settings!r} {layer.migrations!r}"
    assert CANARY not in shown
