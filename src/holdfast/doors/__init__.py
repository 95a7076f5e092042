"""The doors that requests come in through."""
