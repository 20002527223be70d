"""What the driver process does, from the start of a run to its report."""
