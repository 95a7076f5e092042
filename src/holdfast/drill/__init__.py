"""`holdfast drill`: a rehearsal of a preemption with the user's own command, from outside of it."""
