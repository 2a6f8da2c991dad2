"""What happens when a shard is slow, dead or behind."""
