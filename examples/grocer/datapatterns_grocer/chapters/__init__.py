"""One chapter for each pattern; each shows what it does and returns what must be exact."""
