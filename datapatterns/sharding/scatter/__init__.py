"""One answer from many shards, equal to that of one database."""
