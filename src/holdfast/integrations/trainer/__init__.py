"""transformers' Trainer and its subclasses: `attach`."""
