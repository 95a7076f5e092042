"""What makes requests."""
