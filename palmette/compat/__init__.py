"""Other systems' module paths, so that programs written for them run unchanged."""
