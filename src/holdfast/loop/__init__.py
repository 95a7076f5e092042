"""A plain PyTorch loop: what it holds, what of it is saved, and how that is put back."""
