"""Counterpart of `sglang.lang`."""
