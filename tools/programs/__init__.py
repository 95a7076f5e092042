"""Trainings that `make dist` runs from a wheel. `with_<extra>.py` is for that extra."""
