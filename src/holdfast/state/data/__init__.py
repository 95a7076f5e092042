"""Where a training stands in its data."""
