"""The layouts: the files that a checkpoint consists of."""
