"""How the processes that train together agree on one boundary, without a collective."""
