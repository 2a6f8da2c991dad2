"""The demo: a year of a real grocer through every pattern."""
