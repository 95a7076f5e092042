"""Random generators: their states, as files hold them and as training uses them."""
