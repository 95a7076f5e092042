"""A plain PyTorch loop: its state, the saving of it, and how it is put back."""
