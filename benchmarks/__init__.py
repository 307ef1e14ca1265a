"""Figures: each a ratio to something real run side by side, with the command that repeats it. Never part of the tests."""
