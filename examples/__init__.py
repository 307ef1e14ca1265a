"""Programs to read and run. Each file has programs and a `main()` that runs them on the default backend."""
