"""Grid files: reading them, resolving their names, and the cells that they span."""
