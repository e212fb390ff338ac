"""Inspect the BN layers of a model."""
