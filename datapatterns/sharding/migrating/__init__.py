"""One command migrates all shards: the application's own revisions, and the library's."""
