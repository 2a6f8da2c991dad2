"""Sessions and connections over shards."""
