"""Who may move a projection on, how far it is, and the loops that do it."""
