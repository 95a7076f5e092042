"""A mirror of a run: the process that sends its checkpoints to a place beyond this disk, and what training tells it."""
