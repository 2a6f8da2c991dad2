"""What shards hold, and how it could be spread better."""
