"""Who registers a second time misses nothing."""

from sqlalchemy import Engine, select, text

from datapatterns.change_log import ChangeLog, current_snapshot

LOG = ChangeLog()


def test_a_further_log_lets_a_consumer_read_everything_anew(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE item (id int)"))
        conn.execute(text("CREATE TABLE other (id int)"))
        items, others = (LOG.capture(conn, name, ["id"]) for name in ("item", "other"))
        LOG.register_consumer(conn, "relay", "test", log_names=[items])
    with engine.begin() as conn:
        consumer = LOG.lock_consumer(conn, "relay")
        snapshot = conn.execute(select(current_snapshot)).scalar_one()
        LOG.advance_consumer(conn, "relay", snapshot, rebuilt=consumer)
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO other VALUES (1)"))
    with engine.begin() as conn:
        LOG.collect_garbage(conn)  # nobody consumed it then

    with engine.begin() as conn:
        LOG.register_consumer(conn, "relay", "test", log_names=[items, others])

    with engine.begin() as conn:
        consumer = LOG.lock_consumer(conn, "relay")
        assert consumer is not None
        assert (consumer.must_rebuild, consumer.changed_logs) == (True, (others,))
        snapshot = conn.execute(select(current_snapshot)).scalar_one()
        assert not LOG.advance_consumer(conn, "relay", snapshot, rebuilt=consumer)
    with engine.begin() as conn:
        LOG.register_consumer(conn, "relay", "test", log_names=[items, others])
    with engine.begin() as conn:
        consumer = LOG.lock_consumer(conn, "relay")
        assert consumer is not None
        assert not consumer.must_rebuild
