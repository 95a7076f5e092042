"""The position of a training in its data."""
