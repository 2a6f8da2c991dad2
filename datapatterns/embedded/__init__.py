"""Real servers from wheels."""
