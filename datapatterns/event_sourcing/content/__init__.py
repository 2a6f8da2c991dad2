"""What events and snapshots say, between Python and the database: JSON, codecs, limits."""
