"""What runs the IR: streams and their cursor, the executor, choice rules, tracing, and the backends."""
