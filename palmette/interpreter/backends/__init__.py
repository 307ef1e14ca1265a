"""What programs run on. `local` is the only door into the runtime half and is imported lazily."""
