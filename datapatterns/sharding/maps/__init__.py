"""Where buckets lie: the map, how it is kept, and how shards hold to it."""
