"""Tables of which every shard holds a full copy."""
