"""Keep a query by groups: find the keys that changes may concern, run it for these alone."""
