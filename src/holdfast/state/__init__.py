"""The state of a training: a part for each kind of thing that is saved, and how it is put back."""
