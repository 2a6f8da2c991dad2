"""Rows that get another shard key, and with it perhaps another shard."""
