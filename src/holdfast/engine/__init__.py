"""The training thread and the saving thread, from a request to its answer."""
