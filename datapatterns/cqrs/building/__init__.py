"""Build a read model anew, and put it in the place of the one that is read."""
