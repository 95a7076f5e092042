"""Checkpoints beyond this disk: in a bucket of an object store, or in a directory of another disk."""
