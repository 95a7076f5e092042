"""What is saved of a training: each kind of part, and how it is put back."""
