"""References from rows of one shard to rows of another, checked as they are written or later."""
