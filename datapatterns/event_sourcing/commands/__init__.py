"""Commands: load, decide, append, commit, and again if another writer was first."""
