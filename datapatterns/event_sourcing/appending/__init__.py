"""Appends: in the caller's transaction, as a unit of work, by themselves, under conditions."""
