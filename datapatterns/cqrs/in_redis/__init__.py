"""Read models in Redis, whose checkpoint lies beside the data."""
