"""Accelerators, and the memory of the host that they copy to and from."""
