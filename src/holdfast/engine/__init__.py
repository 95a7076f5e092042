"""What the training thread and the saving thread do from a request to its answer."""
