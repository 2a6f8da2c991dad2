"""States folded from streams: aggregates, deciders, loads and snapshots."""
