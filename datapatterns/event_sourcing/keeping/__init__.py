"""Events kept for long: archive, compaction, partitions, the hash chain."""
