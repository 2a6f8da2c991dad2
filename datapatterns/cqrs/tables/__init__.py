"""Read models in tables: fold a page of events into rows, replay, compare."""
