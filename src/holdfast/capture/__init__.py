"""From live objects to a snapshot. Knows no file."""
