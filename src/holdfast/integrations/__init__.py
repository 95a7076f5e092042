"""One line for the trainers that people already use."""
