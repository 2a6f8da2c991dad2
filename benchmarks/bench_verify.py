"""Compare a read model with a replay: by checksums beside a full join, and who waits meanwhile."""
