"""Shapes of events, and how old ones become today's."""
