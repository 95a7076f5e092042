"""The run directory as the place where processes meet: requests, answers, status, journal, lease."""
