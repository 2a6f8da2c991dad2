"""The log of all events: read without gaps, filtered, followed."""
