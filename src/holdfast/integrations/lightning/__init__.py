"""Lightning's Trainer, and the trainer of `pytorch_lightning`, which is the same under another name."""
