"""Commands: typed, decided by one handler each, executed once for each idempotency key."""
