"""Durable directories: how a checkpoint comes to exist, is found, is checked, and is deleted."""
