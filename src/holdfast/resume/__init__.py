"""From a run directory to the checkpoint that a training goes on from."""
