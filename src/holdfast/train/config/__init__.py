"""The YAML of `holdfast train`: read, checked, and said in its own lines what is wrong."""
