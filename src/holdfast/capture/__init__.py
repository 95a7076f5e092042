"""The way from live tensors to a snapshot, while training runs. Knows no layout."""
