"""The agreement of the processes that train together on one boundary, without a collective."""
