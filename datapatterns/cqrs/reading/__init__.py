"""Read a read model: wait for a write, or be told how stale the answer is."""
