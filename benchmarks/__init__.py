"""Figures: ratios to something real, run side by side, each with its command. Never part of the tests."""
