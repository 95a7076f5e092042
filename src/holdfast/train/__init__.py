"""`holdfast train`: from a configuration to a trained model."""
