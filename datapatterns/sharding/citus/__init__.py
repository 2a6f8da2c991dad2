"""Growing out: whether tables could be distributed by Citus, and the SQL that does it."""
