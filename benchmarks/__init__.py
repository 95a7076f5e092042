"""What Holdfast costs, measured on the machine at hand. Prints; never passes or fails."""
