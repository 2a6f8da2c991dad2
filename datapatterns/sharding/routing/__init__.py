"""Which shards a statement or an object is for."""
