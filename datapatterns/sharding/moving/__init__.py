"""Buckets that move from one shard to another while their rows are read and written."""
