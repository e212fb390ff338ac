"""What is in a model's BN layers, and whether it is healthy."""
